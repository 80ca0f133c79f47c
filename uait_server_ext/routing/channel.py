"""One target at work: its breaker, its limits, its time-outs, its retries.

`open` returns when the first event is there: until then a call may be made again, and is. After
that a failure is the caller's to deal with, for somebody may have read the text.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from uait_server_ext.errors import (
    Busy,
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    UaitError,
    UpstreamFailed,
    UpstreamRefused,
)
from uait_server_ext.inference.models import ChatDone, ChatEvent, ChatRequest, TextDelta
from uait_server_ext.resilience.breaker import Breaker, BreakerSettings
from uait_server_ext.resilience.retry import retriable, retried

from .config import ProviderEntry
from .models import LOCAL, Caller, Target
from .providers import Provider

MINUTE = 60.0
FULL_SECONDS = 1
MOST_WAIT_SECONDS = 10
MOST_REST_SECONDS = 300.0


class Channel:
    """Calls of one target."""

    def __init__(
        self,
        target: Target,
        provider: Provider,
        settings: ProviderEntry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self.settings = settings
        self.breaker = Breaker(
            target.id, BreakerSettings(**settings.breaker.model_dump()), clock=clock
        )
        self.in_flight = 0
        self._provider = provider
        self._clock = clock
        self._begun: deque[float] = deque()

    async def open(
        self,
        request: ChatRequest,
        caller: Caller,
        *,
        deadline: float | None = None,
        hurry: bool = False,
    ) -> Opened:
        """Make a call and wait for its first event.

        Args:
            deadline: of `time.monotonic`.
            hurry: there is somebody else to ask: do not try again, and leave time for the other.

        Raises:
            UaitError: it could not be had; the call has ended.
        """
        patience = self.settings.first_token_seconds
        if hurry:
            if deadline is not None:
                patience = min(patience, (deadline - time.monotonic()) / 2)
            return await self._begin(request, caller, deadline, patience)
        return await retried(
            lambda: self._begin(request, caller, deadline, patience),
            attempts=self.settings.attempts,
            deadline=deadline,
            may_retry=self._may_retry,
        )

    def refusal(self) -> UaitError | None:
        """Return why no call may be made now, none where one may; takes no place."""
        limits = self.target.limits
        if limits.concurrent is not None and self.in_flight >= limits.concurrent:
            return Busy(
                f"{self.target.id} is answering as many requests as it may. Try again in a moment.",
                retry_after=FULL_SECONDS,
            )
        if limits.requests_per_minute is not None:
            now = self._clock()
            while self._begun and self._begun[0] <= now - MINUTE:
                self._begun.popleft()
            if len(self._begun) >= limits.requests_per_minute:
                wait = max(1, round(self._begun[0] + MINUTE - now))
                return Busy(
                    f"{self.target.id} was asked as often as it may be in a minute. Try again in "
                    f"{wait} s.",
                    retry_after=wait,
                )
        return None

    def _may_retry(self, error: Exception) -> bool:
        if isinstance(error, Busy):
            # As long as it said is waited, if that is not too long. Our own queues are not stormed.
            return 0 < float(error.extensions.get("retry_after", 0)) <= MOST_WAIT_SECONDS
        return (
            retriable(error)
            and not isinstance(error, UpstreamRefused)
            and self.breaker.state == "closed"
        )

    async def _begin(
        self, request: ChatRequest, caller: Caller, deadline: float | None, patience: float
    ) -> Opened:
        if (refusal := self.refusal()) is not None:
            raise refusal
        if not self.breaker.allow():
            raise self.breaker.refusal()
        if self.target.limits.requests_per_minute is not None:
            self._begun.append(self._clock())
        self.in_flight += 1
        opened = Opened(self, self._provider.chat(self.target, request, caller), deadline)
        try:
            await opened.wait_for_first(patience)
        except BaseException:
            await opened.close()
            raise
        return opened


class Opened:
    """A call under way, whose first event is there; close it at the end."""

    def __init__(
        self, channel: Channel, events: AsyncGenerator[ChatEvent, None], deadline: float | None
    ) -> None:
        self.channel = channel
        self.began = time.monotonic()
        self.first_token_seconds: float | None = None
        self.pieces = 0
        self._events = events
        self._deadline = deadline
        self._waiting: ChatEvent | None = None
        self._closed = False

    async def wait_for_first(self, patience: float) -> None:
        """Wait for the first event; tell the breaker how the call began."""
        breaker = self.channel.breaker
        try:
            self._waiting = await self._step(patience)
        except BaseException as error:
            self._tell(error)
            raise
        self.first_token_seconds = time.monotonic() - self.began
        breaker.success(self.first_token_seconds)

    def __aiter__(self) -> Opened:
        return self

    async def __anext__(self) -> ChatEvent:
        event, self._waiting = self._waiting, None
        if event is None:
            if self._closed:
                raise StopAsyncIteration
            try:
                event = await self._step(self.channel.settings.idle_seconds)
            except Exception as error:
                self._tell(error)
                raise
        if isinstance(event, TextDelta):
            self.pieces += 1
        elif isinstance(event, ChatDone):
            await self.close()
        return event

    @property
    def seconds(self) -> float:
        """Since the call began."""
        return time.monotonic() - self.began

    async def close(self) -> None:
        """End the call, wherever it stands."""
        if not self._closed:
            self._closed = True
            self.channel.in_flight -= 1
            await self._events.aclose()

    async def _step(self, patience: float) -> ChatEvent:
        """Return the next event, within the patience that is left."""
        left = patience if self._deadline is None else self._deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(patience, left)):
                return await anext(self._events)
        except StopAsyncIteration:
            raise UpstreamFailed(
                f"{self.channel.target.id} ended its answer without saying so. Ask again."
            ) from None
        except TimeoutError:
            if left < patience:
                raise DeadlineExceeded(
                    "The answer took longer than the request allows. Give it more time, or ask "
                    "for less."
                ) from None
            raise UpstreamFailed(
                f"{self.channel.target.id} was silent for {patience:g} s. Try again later."
            ) from None

    def _tell(self, error: BaseException) -> None:
        """Tell the breaker what a failure means."""
        breaker = self.channel.breaker
        if isinstance(error, Busy):
            breaker.abandon()
            wait = error.extensions.get("retry_after")
            if wait and self.channel.target.provider != LOCAL:
                breaker.rest(min(float(wait), MOST_REST_SECONDS))
        elif not isinstance(error, Exception) or isinstance(error, (InvalidInput, ModelNotFound)):
            breaker.abandon()  # says nothing of the other side
        elif isinstance(error, DeadlineExceeded) and self.seconds < breaker.settings.slow_seconds:
            breaker.abandon()  # it was given little time
        else:
            breaker.failure()
