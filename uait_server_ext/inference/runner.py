"""One model that runs here: loads it on the first request, queues requests, survives its worker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal

from uait_server_ext.errors import ModelUnavailable, UaitError, WorkerDied

from .cache import ModelCache
from .catalogue import CatalogueEntry
from .process import LAST_FRAMES, WorkerProcess, worker_environment
from .protocol import Frame
from .turns import Turns

RunnerState = Literal["stopped", "loading", "loaded", "failed"]
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # after that many failures to load in a row


class ModelRunner:
    """Requests to one model on one backend, one at a time."""

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: str,
        *,
        cache: ModelCache,
        threads: int,
        queue_limit: int,
        prepare: Callable[[], Awaitable[None]],
        log: logging.Logger,
    ) -> None:
        self.entry = entry
        self.backend = backend
        self.turns = Turns(entry.id, queue_limit)
        self.ready: dict[str, Any] = {}
        self._cache = cache
        self._threads = threads
        self._prepare = prepare
        self._log = log
        self._worker: WorkerProcess | None = None
        self._loading: asyncio.Task[WorkerProcess] | None = None
        self._failures = 0
        self._failed_at = 0.0
        self._reason = ""
        self._closed = False

    @property
    def state(self) -> RunnerState:
        """How the model stands."""
        if self._loading is not None and not self._loading.done():
            return "loading"
        if self._worker is not None and self._worker.alive:
            return "loaded"
        return "failed" if self._reason else "stopped"

    @property
    def reason(self) -> str:
        """Why it failed to load, if it did."""
        return self._reason

    async def stream(
        self, message: dict[str, Any], *, priority: int = 0, bounded: bool = True
    ) -> AsyncGenerator[Frame, None]:
        """Send a request and yield its frames; closing the iterator cancels it.

        Raises ``Busy``, ``ModelUnavailable``, ``WorkerDied`` or what the backend reports.
        """
        await self.turns.acquire(priority, bounded=bounded)
        try:
            worker = await self._loaded()
            request = worker.submit(message)
            try:
                while (frame := await request.next()).message["type"] not in LAST_FRAMES:
                    yield frame
            except WorkerDied:
                if self._closed:
                    raise _stopping() from None
                raise
            finally:
                await worker.cancel(request)
        finally:
            self.turns.release()
        yield frame  # whoever stops reading here does not keep the next one waiting

    async def close(self) -> None:
        """End the worker; requests under way and waiting fail."""
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        await self._stop_worker()

    async def unload(self) -> None:
        """Give the model's memory back after the request under way; the next one loads it again."""
        await self.turns.acquire(bounded=False)
        try:
            await self._stop_worker()
        finally:
            self.turns.release()

    async def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    async def _loaded(self) -> WorkerProcess:
        """Return the worker, started if need be; a caller that goes away leaves the start alone."""
        if self._closed:
            raise _stopping()
        if self._worker is not None and self._worker.alive:
            return self._worker
        if self._loading is None or self._loading.done():
            self._back_off()
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(_look_at)
        try:
            return await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            if self._closed:
                raise _stopping() from None
            raise

    def _back_off(self) -> None:
        pause = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        left = self._failed_at + pause - time.monotonic()
        if self._failures and left > 0:
            raise ModelUnavailable(
                f"{self._reason} It failed {self._failures} times; the next attempt is possible in "
                f"{left:.0f} s.",
                retry_after=max(1, round(left)),
            )

    async def _load(self) -> WorkerProcess:
        load = {
            "entry": self.entry.model_dump(mode="json"),
            "backend": self.backend,
            "cache": str(self._cache.root.absolute()),
            "threads": self._threads,
        }
        began = time.monotonic()
        try:
            await self._prepare()
            self._failures += 1  # until it is loaded; what is merely missing may come any moment
            self._worker, self.ready = await WorkerProcess.start(
                self.entry.id,
                load,
                cwd=self._cache.root,
                environment=worker_environment(threads=self._threads),
                log=self._log,
            )
        except UaitError as error:
            self._failed_at = time.monotonic()
            self._reason = error.detail
            raise
        self._failures, self._reason = 0, ""
        self._log.info(
            "loaded %s on %s in %.1f s", self.entry.id, self.backend, time.monotonic() - began
        )
        return self._worker


def _stopping() -> ModelUnavailable:
    return ModelUnavailable("The model service is stopping. Ask again when it has started.")


def _look_at(loading: asyncio.Task[WorkerProcess]) -> None:
    """Take a failure as seen: everybody who waited for it may have left, and it is kept anyway."""
    if not loading.cancelled():
        loading.exception()
