"""Take turns at a model that serves a few requests at once, fairly by caller.

Who goes next: the lowest priority number; of those the caller with the fewest turns under way, then
the one whose last turn began longest ago; of one caller's requests the first. With one slot that is
round robin over callers. The queue is bounded; where it is full, a caller who asks for much less
than another takes the place of that one's newest request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from uait_server_ext.errors import Busy

SMOOTHING = 0.3  # weight of the newest turn in the average duration


@dataclass(eq=False)
class Turn:
    """The right to use one slot, until released."""

    caller: str
    began: float
    _release: Callable[[Turn], None]
    released: bool = False

    def release(self) -> None:
        """Give the slot to the next in line; a second time does nothing."""
        if not self.released:
            self.released = True
            self._release(self)


@dataclass(eq=False)
class _Waiter:
    caller: str
    priority: int
    bounded: bool
    given: asyncio.Future[Turn]


@dataclass
class _Line:
    """Those who wait with one priority: by caller, who was served last longest ago first."""

    callers: dict[str, deque[_Waiter]] = field(default_factory=dict)

    def add(self, waiter: _Waiter) -> None:
        self.callers.setdefault(waiter.caller, deque()).append(waiter)

    def remove(self, waiter: _Waiter) -> None:
        waiters = self.callers[waiter.caller]
        waiters.remove(waiter)
        if not waiters:
            del self.callers[waiter.caller]

    def next(self, under_way: Counter[str]) -> _Waiter:
        caller = min(self.callers, key=lambda name: under_way[name])
        waiters = self.callers.pop(caller)
        first = waiters.popleft()
        if waiters:  # to the end of the line
            self.callers[caller] = waiters
        return first


class Turns:
    """Slots with a fair, bounded queue and an estimate of the waiting time."""

    def __init__(
        self,
        what: str,
        limit: int,
        *,
        on_idle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.idle_since = clock()
        self._what = what
        self._limit = limit
        self._on_idle = on_idle
        self._clock = clock
        self._slots = 1
        self._average = 1.0
        self._under_way: Counter[str] = Counter()
        self._lines: dict[int, _Line] = {}
        self._held = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def slots(self) -> int:
        """How many turns there are at once."""
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        self._slots = slots
        self._give()

    @property
    def under_way(self) -> int:
        """How many turns are taken now."""
        return self._under_way.total()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters())

    @property
    def idle(self) -> bool:
        """Whether no turn is taken and nobody waits."""
        return not self.under_way and not self._lines

    async def acquire(self, caller: str = "", *, priority: int = 0, bounded: bool = True) -> Turn:
        """Wait for a turn and return it; lower priorities go first.

        Raises ``Busy`` with ``retry_after`` seconds when ``bounded`` and the queue is full, also
        later, when a caller with less takes the place.
        """
        if not self._lines and self._free:
            return self._take(caller)
        if bounded and self.waiting >= self._limit:
            self._make_room(caller, priority)
        given: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(caller, priority, bounded, given)
        self._lines.setdefault(priority, _Line()).add(waiter)
        try:
            return await given
        except asyncio.CancelledError:
            if not given.done() or given.cancelled():
                self._leave(waiter)
            elif given.exception() is None:  # given the turn in the moment of giving up
                given.result().release()
            raise

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None, None]:
        """Give no more turns, wait until those under way have ended, and hold all meanwhile."""
        self._held += 1
        try:
            await self._empty.wait()
            yield
        finally:
            self._held -= 1
            self._give()

    @property
    def _free(self) -> bool:
        return not self._held and self.under_way < self._slots

    def _waiters(self) -> list[_Waiter]:
        lines = self._lines.values()
        return [waiter for line in lines for own in line.callers.values() for waiter in own]

    def _take(self, caller: str) -> Turn:
        self._under_way[caller] += 1
        self._empty.clear()
        return Turn(caller, self._clock(), self._end)

    def _end(self, turn: Turn) -> None:
        now = self._clock()
        self._average += SMOOTHING * (now - turn.began - self._average)
        self._under_way[turn.caller] -= 1
        self._under_way += Counter()  # forgets callers with none
        if not self._under_way:
            self._empty.set()
        self._give()
        if self.idle:
            self.idle_since = now
            self._on_idle()

    def _give(self) -> None:
        while self._lines and self._free:
            priority = min(self._lines)
            line = self._lines[priority]
            waiter = line.next(self._under_way)
            if not line.callers:
                del self._lines[priority]
            if not waiter.given.done():
                waiter.given.set_result(self._take(waiter.caller))

    def _leave(self, waiter: _Waiter) -> None:
        line = self._lines.get(waiter.priority)
        if line is not None and waiter in line.callers.get(waiter.caller, ()):
            line.remove(waiter)
            if not line.callers:
                del self._lines[waiter.priority]

    def _make_room(self, caller: str, priority: int) -> None:
        """Send away the newest request of the caller with most, or raise ``Busy``."""
        waiters = [w for w in self._waiters() if w.bounded and w.priority >= priority]
        count = Counter(waiter.caller for waiter in waiters)
        greedy = max(count, key=lambda name: count[name], default=caller)
        if count[greedy] <= count[caller] + 1:
            raise self._busy()
        newest = [waiter for waiter in waiters if waiter.caller == greedy][-1]
        self._leave(newest)
        if not newest.given.done():
            newest.given.set_exception(self._busy())

    def _busy(self) -> Busy:
        seconds = max(1, math.ceil(self._average * (self.waiting + 1) / self._slots))
        return Busy(
            f"{self._what} is busy: {self.waiting} requests wait already. Try again in about "
            f"{seconds} s.",
            retry_after=seconds,
        )
