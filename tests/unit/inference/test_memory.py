"""One budget of memory for all models: who has to go, who may stay, who does not fit."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uait_server_ext.errors import ModelUnavailable
from uait_server_ext.inference import memory as memory_module
from uait_server_ext.inference.memory import ModelMemory


class Model:
    """A model of the test: idle since a moment, or with requests under way."""

    def __init__(self, name: str, memory: ModelMemory, idle_since: float | None = 0.0) -> None:
        self.name = name
        self.idle_since = idle_since
        self.unloaded = 0
        self._memory = memory

    async def unload(self) -> None:
        assert self.idle_since is not None, "a model with requests under way was put away"
        await asyncio.sleep(0)  # a process takes its time to end
        self.unloaded += 1
        self._memory.release(self)


def test_the_model_used_longest_ago_gives_way() -> None:
    async def main() -> None:
        memory = ModelMemory(10)
        old, new, third = (Model(name, memory, at) for name, at in (("a", 1), ("b", 2), ("c", 3)))
        await memory.reserve(old, 4)
        await memory.reserve(new, 4)
        await memory.reserve(third, 5)
        assert (old.unloaded, new.unloaded) == (1, 0)
        assert memory.used == 9

    asyncio.run(main())


def test_nobody_is_put_away_when_that_would_not_be_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_module, "ROOM_SECONDS", 0.05)

    async def main() -> None:
        memory = ModelMemory(10)
        busy, idle = Model("busy", memory, None), Model("idle", memory)
        await memory.reserve(busy, 6)
        await memory.reserve(idle, 2)
        with pytest.raises(ModelUnavailable, match=r"requests under way \(busy\)") as caught:
            await memory.reserve(Model("large", memory), 5)
        assert caught.value.extensions["retry_after"] > 0
        assert idle.unloaded == 0
        assert memory.used == 8

    asyncio.run(main())


def test_a_load_waits_for_a_model_that_is_busy_now() -> None:
    async def main() -> None:
        memory = ModelMemory(10)
        busy = Model("busy", memory, None)
        await memory.reserve(busy, 6)
        loading = asyncio.create_task(memory.reserve(Model("next", memory), 6))
        await asyncio.sleep(0.01)
        assert not loading.done()
        busy.idle_since = 5.0
        memory.changed()
        await loading
        assert busy.unloaded == 1

    asyncio.run(main())


def test_a_model_over_the_budget_is_refused_at_once() -> None:
    async def main() -> None:
        memory = ModelMemory(10_000_000_000)
        model = Model("huge", memory)
        with pytest.raises(ModelUnavailable, match=r"huge needs 20\.0 GB.*10\.0 GB.*memory_budget"):
            await memory.reserve(model, 20_000_000_000)
        assert memory.used == 0

    asyncio.run(main())


@settings(deadline=None, max_examples=50)
@given(needs=st.lists(st.integers(1, 10), min_size=1, max_size=12))
def test_loads_at_the_same_time_never_exceed_the_budget(needs: list[int]) -> None:
    async def main() -> None:
        memory = ModelMemory(10)
        most = 0

        async def load(model: Model, need: int) -> None:
            nonlocal most
            await memory.reserve(model, need)
            most = max(most, memory.used)
            model.idle_since = None
            await asyncio.sleep(0)
            model.idle_since = asyncio.get_running_loop().time()
            memory.changed()

        models = [Model(str(n), memory, None) for n in range(len(needs))]
        async with asyncio.timeout(10):
            await asyncio.gather(*map(load, models, needs))
        assert most <= 10

    asyncio.run(main())
