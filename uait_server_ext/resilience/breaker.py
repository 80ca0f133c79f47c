"""A breaker: calls to a part that fails stop for a while, then one probe tries it.

::

    closed ── failure rate or slow rate over the window ──► open ── its time is over ──► half-open
      ▲                                                      ▲                               │
      └──────────────── the probe succeeds ──────────────────┼──── the probe fails ──────────┘

It is driven by the outcome of calls. In half-open one call goes through and the rest of the herd
is told to wait. Each failed probe doubles the time to the next.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from uait_server_ext.errors import CircuitOpen, InvalidInput

State = Literal["closed", "open", "half-open"]

BUCKETS = 10
MOST_OPEN_SECONDS = 60.0
PROBE_SECONDS = 120.0
"""A probe that nobody ended (its caller was lost) gives its place up after so long."""


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens.

    Attributes:
        least_calls: fewer in the window say nothing.
        failure_rate: high, since a part that serves half of its calls serves more than none.
        slow_seconds: a call that took longer counts as slow, though it succeeded.
        open_seconds: until the first probe.
    """

    window_seconds: float = 60.0
    least_calls: int = 4
    failure_rate: float = 0.7
    slow_seconds: float = 20.0
    slow_rate: float = 0.8
    open_seconds: float = 5.0


class Breaker:
    """The breaker of one part, by its name.

    Use it as `async with breaker:`, or ask `allow()` and report with `success`, `failure` or
    `abandon`: exactly one of them for each call that was allowed.
    """

    def __init__(
        self,
        name: str,
        settings: BreakerSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.settings = settings or BreakerSettings()
        self.opened = 0  # how often, for metrics
        self._clock = clock
        self._width = self.settings.window_seconds / BUCKETS
        self._buckets: dict[int, list[int]] = {}  # number: calls, failures, slow ones
        self._until: float | None = None  # open until; none: closed
        self._probing: float | None = None  # since when a probe is under way
        self._pause = self.settings.open_seconds
        self._began: dict[asyncio.Task[object] | None, float] = {}

    @property
    def state(self) -> State:
        """How it stands."""
        if self._until is None:
            return "closed"
        return "open" if self._clock() < self._until else "half-open"

    def allow(self) -> bool:
        """Tell whether a call may be made now; in half-open the first who asks is the probe."""
        if self._until is None:
            return True
        now = self._clock()
        if now < self._until:
            return False
        if self._probing is not None and now - self._probing < PROBE_SECONDS:
            return False
        self._probing = now
        return True

    def success(self, seconds: float = 0.0) -> None:
        """Note a call that succeeded, and how long it took."""
        if self._until is not None:
            if self._probing is not None:
                self._close()
            return  # else a call from before it opened: the probe decides
        self._count(slow=seconds > self.settings.slow_seconds)

    def failure(self) -> None:
        """Note a call that failed."""
        if self._until is not None:
            if self._probing is not None:
                self._pause = min(self._pause * 2, MOST_OPEN_SECONDS)
                self._open()
            return
        self._count(failed=True)

    def abandon(self) -> None:
        """Note a call that ended without saying anything: its caller left, or asked nonsense."""
        self._probing = None

    def rest(self, seconds: float) -> None:
        """Let no call through for so long: the other side has said when to come back."""
        self._until = max(self._until or 0.0, self._clock() + seconds)
        self._probing = None

    @property
    def wait_seconds(self) -> float:
        """Seconds until a call may be tried again; 0 where it may now."""
        return max(0.0, (self._until or 0.0) - self._clock())

    def refusal(self) -> CircuitOpen:
        """Return the error of a call that is not allowed; `retry_after` is in whole seconds."""
        wait = max(1, math.ceil(self.wait_seconds))
        return CircuitOpen(
            f"{self.name} failed too often and is left alone for now. Try again in {wait} s.",
            retry_after=wait,
        )

    async def __aenter__(self) -> Breaker:
        if not self.allow():
            raise self.refusal()
        self._began[asyncio.current_task()] = self._clock()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        began = self._began.pop(asyncio.current_task(), self._clock())
        if kind is None:
            self.success(self._clock() - began)
        elif issubclass(kind, InvalidInput) or not issubclass(kind, Exception):
            self.abandon()
        else:
            self.failure()

    def _count(self, *, failed: bool = False, slow: bool = False) -> None:
        number = int(self._clock() / self._width)
        bucket = self._buckets.get(number)
        if bucket is None:
            self._buckets = {n: b for n, b in self._buckets.items() if n > number - BUCKETS}
            bucket = self._buckets[number] = [0, 0, 0]
        bucket[0] += 1
        bucket[1] += failed
        bucket[2] += slow
        if failed or slow:
            self._judge()

    def _judge(self) -> None:
        calls, failures, slow = map(sum, zip(*self._buckets.values(), strict=True))
        settings = self.settings
        if calls >= settings.least_calls and (
            failures >= settings.failure_rate * calls or slow >= settings.slow_rate * calls
        ):
            self._pause = settings.open_seconds
            self.opened += 1
            self._open()

    def _open(self) -> None:
        self._until = self._clock() + self._pause
        self._probing = None
        self._buckets = {}

    def _close(self) -> None:
        self._until = self._probing = None
        self._pause = self.settings.open_seconds
        self._buckets = {}
