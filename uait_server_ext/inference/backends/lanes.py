"""Who may run beside whom: requests wait in order, and run side by side only with their like.

A lane is what requests must have in common to run in one batch (a LoRA adapter). A request that
runs ``alone`` has a lane of its own. The head of the queue is never overtaken, so that nobody
starves: whoever waits for the batch to drain keeps later ones waiting too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Place(Generic[T]):
    """One request in the queue or at work; ``tokens`` is the room that it may take."""

    number: int
    item: T
    lane: Hashable
    alone: bool
    tokens: int


class Lanes(Generic[T]):
    """A queue, and what runs out of it: at most ``streams`` at once, ``room`` tokens together."""

    def __init__(self, streams: int, room: int) -> None:
        self._streams = streams
        self._room = room
        self._waiting: deque[Place[T]] = deque()
        self._running: dict[int, Place[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(
        self, number: int, item: T, *, lane: Hashable = None, alone: bool = False, tokens: int = 0
    ) -> None:
        """Put a request at the end of the queue."""
        self._waiting.append(Place(number, item, lane, alone, tokens))

    def admit(self) -> Place[T] | None:
        """Take the head of the queue to work, if it may begin now."""
        if not self._waiting:
            return None
        head, running = self._waiting[0], self._running.values()
        if running and (
            head.alone
            or len(running) >= self._streams
            or any(other.alone or other.lane != head.lane for other in running)
            or sum(other.tokens for other in running) + head.tokens > self._room
        ):
            return None
        self._waiting.popleft()
        self._running[head.number] = head
        return head

    def withdraw(self, number: int) -> T | None:
        """Take a request out of the queue; None where it does not wait."""
        for place in self._waiting:
            if place.number == number:
                self._waiting.remove(place)
                return place.item
        return None

    def release(self, number: int) -> None:
        """Note that a request runs no more."""
        self._running.pop(number, None)
