"""Server-sent events (WHATWG HTML, section 9.2): framing, keep-alive, cancel.

The stream starts when the first event is there, so that an error before it is an ordinary HTTP
error. When an operation is slow to its first event (a model that loads), the headers go out with
a keep-alive comment instead, and an error after that is an `error` event with a problem document.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel

KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = ": keep-alive\n\n"


def frame(event: BaseModel) -> str:
    """Return one event as `event: <type>` and a single line of JSON data."""
    kind = getattr(event, "type", "message")
    return f"event: {kind}\ndata: {event.model_dump_json()}\n\n"


def error_frame(problem: dict[str, Any]) -> str:
    """Return a problem document as the last event of a stream that had begun."""
    return f"event: error\ndata: {json.dumps(problem)}\n\n"


async def frames(
    events: AsyncIterator[BaseModel],
    as_text: Callable[[BaseModel], str] = frame,
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
) -> AsyncIterator[str]:
    """Yield frames for events, and keep-alive comments while none comes.

    Closing this iterator closes `events`, which is how a client that goes away cancels the work.
    """
    async with aclosing(events) as source:  # type: ignore[type-var]
        following = asyncio.ensure_future(anext(source))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=keep_alive)
                if not done:
                    yield KEEP_ALIVE
                    continue
                try:
                    event = following.result()
                except StopAsyncIteration:
                    return
                if text := as_text(event):
                    yield text
                following = asyncio.ensure_future(anext(source))
        finally:
            if not following.done():
                following.cancel()
                await asyncio.wait({following})
            elif not following.cancelled():
                following.exception()  # mark as seen: it was raised above, or nobody is left


async def last(events: AsyncIterator[BaseModel]) -> BaseModel:
    """Run a stream to its end and return its last event, the result."""
    result: BaseModel | None = None
    async with aclosing(events) as source:  # type: ignore[type-var]
        async for event in source:
            result = event
    if result is None:
        raise RuntimeError("a streaming operation ended without a result")
    return result
