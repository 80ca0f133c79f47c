"""Take turns at something that serves one at a time: in order of priority, then of arrival."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time

from uait_server_ext.errors import Busy

SMOOTHING = 0.3  # weight of the newest turn in the average duration


class Turns:
    """A lock with priorities, a bound on the queue and an estimate of the waiting time."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._taken = False
        self._since = 0.0
        self._average = 1.0
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    async def acquire(self, priority: int = 0, *, bounded: bool = True) -> None:
        """Wait for the turn; lower priorities go first.

        Raises ``Busy`` with ``retry_after`` seconds when ``bounded`` and the queue is full.
        """
        if self._taken:
            if bounded and self.waiting >= self._limit:
                raise self._busy()
            await self._wait(priority)
        self._taken = True
        self._since = time.monotonic()

    def release(self) -> None:
        """Give the turn to the next in line."""
        spent = time.monotonic() - self._since
        self._average += SMOOTHING * (spent - self._average)
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return sum(not turn.done() for *_, turn in self._waiting)

    async def _wait(self, priority: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # given the turn in the moment of giving up
                self.release()
            raise

    def _busy(self) -> Busy:
        seconds = max(1, math.ceil(self._average * (self.waiting + 1)))
        return Busy(
            f"{self._what} is busy: {self.waiting} requests wait already. Try again in about "
            f"{seconds} s.",
            retry_after=seconds,
        )
