"""Equal requests of one person at the same time: one call, whose events all of them read.

The call goes on while anybody reads it and ends when the last one has gone. It is of use only
where equal requests have equal answers; the router decides which.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable

from uait_server_ext.errors import ModelUnavailable

from .models import RoutedDone, RoutedEvent

Start = Callable[[], AsyncGenerator[RoutedEvent, None]]


class Flight:
    """A call under way and what came of it so far."""

    def __init__(self) -> None:
        self.events: list[RoutedEvent] = []
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.error: Exception | None = None
        self._news = asyncio.Event()

    async def run(self, start: Start) -> None:
        """Make the call."""
        try:
            events = start()
            try:
                async for event in events:
                    self.events.append(event)
                    self._tell()
            finally:
                await events.aclose()
        except Exception as error:
            self.error = error  # for every reader, in its own task
        except asyncio.CancelledError:
            self.error = ModelUnavailable("The request was stopped. Send it again.")
            raise
        finally:
            self.over = True
            self._tell()

    async def read(self) -> AsyncGenerator[RoutedEvent, None]:
        """Yield the events from the first on."""
        number = 0
        while True:
            while number < len(self.events):
                yield self.events[number]
                number += 1
            if self.over:
                if self.error is not None:
                    raise self.error
                return
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Flights:
    """The calls under way, by who asks what."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def join(self, key: Hashable, start: Start) -> AsyncGenerator[RoutedEvent, None]:
        """Read the call of that key; make it where there is none."""
        flight = self._flights.get(key)
        mine = flight is None or flight.over  # what is over is for a cache to keep
        if flight is None or flight.over:
            flight = self._flights[key] = Flight()
            flight.task = asyncio.create_task(flight.run(start))
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        assert flight.task is not None
        flight.readers += 1
        events = flight.read()
        try:
            async for event in events:
                yield event if mine or not isinstance(event, RoutedDone) else shared(event)
        finally:
            await events.aclose()
            flight.readers -= 1
            if not flight.readers and not flight.over:
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _forget(self, key: Hashable, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def shared(done: RoutedDone) -> RoutedDone:
    """Return the end of a call as it is told to those who did not pay for it."""
    decision = done.decision.model_copy(update={"shared": True, "cost_usd": 0.0})
    return done.model_copy(update={"decision": decision})
