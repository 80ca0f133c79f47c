"""Follow blocking work, such as a download, as a stream of events that can be broken off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

from uait_server_ext.errors import ModelUnavailable

from .cache import OnProgress
from .models import PullProgress


async def follow(work: Callable[[OnProgress], Awaitable[object]]) -> AsyncIterator[PullProgress]:
    """Yield what ``work`` tells of its progress, from whatever thread; raise what it raises.

    Closing the iterator lets the next word of progress raise, which gives the work up, and waits
    until it has ended.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[PullProgress | None] = asyncio.Queue()
    given_up = threading.Event()

    def tell(progress: PullProgress) -> None:
        if given_up.is_set():
            raise ModelUnavailable(f"{progress.model}: broken off. Start again to go on.")
        loop.call_soon_threadsafe(heard.put_nowait, progress)

    async def run() -> None:
        try:
            await work(tell)
        finally:
            heard.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (progress := await heard.get()) is not None:
            yield progress
        await task
    finally:
        given_up.set()
        if not task.done():
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # raised above, or nobody is left to hear it
