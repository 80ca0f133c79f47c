"""The memory that all loaded models share: who holds how much, and who must go for another."""

from __future__ import annotations

import asyncio
from typing import Protocol

from uait_server_ext.errors import ModelUnavailable

ROOM_SECONDS = 30.0  # so long a load waits for models with requests under way
RETRY_SECONDS = 10


class Resident(Protocol):
    """A model that can be loaded and put away."""

    @property
    def name(self) -> str:
        """Its name for people."""
        ...

    @property
    def idle_since(self) -> float | None:
        """When its last request ended; None while it has some, or waits for some."""
        ...

    async def unload(self) -> None:
        """Give its memory back."""
        ...


class ModelMemory:
    """A budget in bytes; idle models are put away, the one used longest ago first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: dict[Resident, int] = {}
        self._changed = asyncio.Event()

    @property
    def used(self) -> int:
        """Bytes held by models that are loaded or being loaded."""
        return sum(self._held.values())

    async def reserve(self, resident: Resident, need: int) -> None:
        """Hold ``need`` bytes for a model that is about to be loaded.

        Raises ``ModelUnavailable`` when it never fits, or when models with requests under way have
        kept the room for ``ROOM_SECONDS``.
        """
        if need > self.budget:
            raise ModelUnavailable(
                f"{resident.name} needs {_gb(need)} of memory, and all models together may take "
                f"{_gb(self.budget)} here. Choose a smaller model, or raise "
                "UaitApp.memory_budget."
            )
        self.release(resident)
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                while self.used + need > self.budget:
                    await self._make_room(need)
        except TimeoutError:
            busy = sorted(other.name for other in self._held if other.idle_since is None)
            raise ModelUnavailable(
                f"{resident.name} needs {_gb(need)} of memory, and models with requests under way "
                f"({', '.join(busy)}) leave too little of the {_gb(self.budget)} that all may "
                "take. Ask again when they are done.",
                retry_after=RETRY_SECONDS,
            ) from None
        self._held[resident] = need

    def resize(self, resident: Resident, size: int) -> None:
        """Note what a loaded model really takes, where that is known better now."""
        if resident in self._held:
            self._held[resident] = size

    def release(self, resident: Resident) -> None:
        """Note that a model has given its memory back."""
        self._held.pop(resident, None)
        self.changed()

    def changed(self) -> None:
        """Let those who wait look again: something was released, or has become idle."""
        self._changed.set()
        self._changed = asyncio.Event()

    def held(self, resident: Resident) -> int:
        """Return the bytes that one model holds."""
        return self._held.get(resident, 0)

    async def _make_room(self, need: int) -> None:
        """Put one idle model away where that helps; else wait for a change."""
        idle = {other: since for other in self._held if (since := other.idle_since) is not None}
        within_reach = self.used - sum(self._held[other] for other in idle)
        if idle and within_reach + need <= self.budget:
            await min(idle, key=lambda other: idle[other]).unload()
        else:
            await self._changed.wait()


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
