"""One model that runs here: loaded on first use, shared fairly, restarted when its worker dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from uait_server_ext.errors import DeadlineExceeded, ModelUnavailable, UaitError, WorkerDied

from .cache import ModelCache
from .catalogue import CatalogueEntry
from .environment import worker_environment
from .memory import ModelMemory
from .process import LAST_FRAMES, WorkerProcess
from .protocol import Frame
from .tally import Tally
from .turns import Turns

RunnerState = Literal["stopped", "loading", "loaded", "failed"]
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # after that many failures to load in a row

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much a model may be asked at once and how long it stays without being asked.

    ``streams`` caps how many requests it serves at once (0: as many as its backend can),
    ``queue`` how many wait. An idle model is put away after ``keep_alive`` seconds (0: never).
    """

    streams: int = 0
    queue: int = 16
    keep_alive: float = 0.0


class ModelRunner:
    """Requests to one model on one backend, as many at once as its backend serves."""

    def __init__(
        self,
        entry: CatalogueEntry,
        backend: str,
        *,
        draft: CatalogueEntry | None = None,
        cache: ModelCache,
        memory: ModelMemory,
        threads: int,
        limits: Limits,
        prepare: Callable[[], Awaitable[None]],
        log: logging.Logger,
    ) -> None:
        self.entry = entry
        self.backend = backend
        self.turns = Turns(entry.id, limits.queue, on_idle=self._on_idle)
        self.ready: dict[str, Any] = {}
        self.tally = Tally()
        self._draft = draft
        self._cache = cache
        self._memory = memory
        self._threads = threads
        self._limits = limits
        self._prepare = prepare
        self._log = log
        self._worker: WorkerProcess | None = None
        self._loading: asyncio.Task[WorkerProcess] | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._keeping: asyncio.TimerHandle | None = None
        self._failures = 0
        self._failed_at = 0.0
        self._reason = ""
        self._closed = False

    @property
    def name(self) -> str:
        """The model id."""
        return self.entry.id

    @property
    def state(self) -> RunnerState:
        """How the model stands."""
        if self._is_loading:
            return "loading"
        if self._worker is not None and self._worker.alive:
            return "loaded"
        return "failed" if self._reason else "stopped"

    @property
    def reason(self) -> str:
        """Why it failed to load, if it did."""
        return self._reason

    @property
    def loaded_bytes(self) -> int:
        """The memory it holds of all models' budget."""
        return self._memory.held(self)

    @property
    def idle_since(self) -> float | None:
        """When its last request ended; None while it has some, or loads."""
        return None if self._is_loading or not self.turns.idle else self.turns.idle_since

    async def stream(
        self,
        message: dict[str, Any],
        *,
        caller: str = "",
        priority: int = 0,
        bounded: bool = True,
        deadline: float | None = None,
    ) -> AsyncGenerator[Frame, None]:
        """Send a request and yield its frames; closing the iterator cancels it.

        ``deadline`` is in seconds from now, waiting and loading included. Raises ``Busy``,
        ``DeadlineExceeded``, ``ModelUnavailable``, ``WorkerDied`` or what the backend reports.
        """
        loop = asyncio.get_running_loop()
        ends_at = None if deadline is None else loop.time() + deadline
        late = DeadlineExceeded(
            f"{self.name} did not end its answer within the {deadline or 0:g} s that the request "
            "gave it. Allow more time, or ask for fewer tokens."
        )
        taking = self.turns.acquire(caller, priority=priority, bounded=bounded)
        turn = await _before(ends_at, late, taking)
        try:
            worker = await _before(ends_at, late, self._loaded())
        except BaseException:
            turn.release()
            raise
        request = worker.submit(message, turn.release)
        expiry = loop.call_at(ends_at, worker.cancel, request, late) if ends_at else None
        try:
            while (frame := await request.next()).message["type"] not in LAST_FRAMES:
                yield frame
        except WorkerDied:
            if self._closed:
                raise _stopping() from None
            raise
        finally:
            if expiry:
                expiry.cancel()
            worker.cancel(request)
        yield frame

    async def load(self) -> None:
        """Load the model now, if it is not. Raises ``ModelUnavailable``."""
        turn = await self.turns.acquire(bounded=False)
        try:
            await self._loaded()
        finally:
            turn.release()

    async def unload(self) -> None:
        """Give the model's memory back after the requests under way; the next loads it again."""
        if self._unloading is None or self._unloading.done():
            self._unloading = asyncio.create_task(self._unload())
        await asyncio.shield(self._unloading)

    async def close(self) -> None:
        """End the worker; requests under way and waiting fail."""
        self._closed = True
        if self._keeping is not None:
            self._keeping.cancel()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        await self._stop_worker()
        if self._unloading is not None:
            await asyncio.wait([self._unloading])

    @property
    def _need(self) -> int:
        return self.entry.memory_bytes + (self._draft.memory_bytes if self._draft else 0)

    @property
    def _is_loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    async def _unload(self) -> None:
        async with self.turns.alone():
            if self._is_loading:  # for a caller that has left
                assert self._loading
                await asyncio.wait([self._loading])
            await self._stop_worker()

    async def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()
            self._memory.release(self)

    def _on_idle(self) -> None:
        self._memory.changed()
        if self._keeping is None and self._limits.keep_alive and not self._closed:
            loop = asyncio.get_running_loop()
            self._keeping = loop.call_later(self._limits.keep_alive, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        """Put the model away when it has been idle for long; else look again when it might be."""
        self._keeping = None
        since = self.idle_since
        if since is None or self._worker is None or not self._limits.keep_alive:
            return
        left = since + self._limits.keep_alive - time.monotonic()
        if left > 0:
            loop = asyncio.get_running_loop()
            self._keeping = loop.call_later(left, self._look_whether_idle)
        else:
            self._log.info("putting %s away: nobody asked for a while", self.name)
            self._unloading = asyncio.create_task(self._unload())

    async def _loaded(self) -> WorkerProcess:
        """Return the worker, started if need be; a caller that goes away leaves the start alone."""
        if self._closed:
            raise _stopping()
        if self._worker is not None and self._worker.alive:
            return self._worker
        if not self._is_loading:
            self._back_off()
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(_look_at)
        assert self._loading
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
            "draft": self._draft.model_dump(mode="json") if self._draft is not None else None,
            "backend": self.backend,
            "cache": str(self._cache.root.absolute()),
            "threads": self._threads,
        }
        began = time.monotonic()
        self._worker = None
        try:
            await self._prepare()
            await self._memory.reserve(self, self._need)
            self._failures += 1  # until it is loaded; what is merely missing may come any moment
            worker, self.ready = await WorkerProcess.start(
                self.name,
                load,
                cwd=self._cache.root,
                environment=worker_environment(threads=self._threads),
                log=self._log,
            )
        except BaseException as error:
            self._memory.release(self)
            if isinstance(error, UaitError):
                self._failed_at = time.monotonic()
                self._reason = error.detail
            raise
        self._worker = worker
        worker.on_gone(lambda: self._on_gone(worker))
        self._failures, self._reason = 0, ""
        self._memory.resize(self, max(self._need, self.ready["memory_bytes"]))
        most = self._limits.streams or self.ready["streams"]
        self.turns.slots = min(most, self.ready["streams"])
        self.tally.loads += 1
        self._log.info(
            "loaded %s on %s in %.1f s", self.name, self.backend, time.monotonic() - began
        )
        return worker

    def _on_gone(self, worker: WorkerProcess) -> None:
        if self._worker is worker:  # it died, and no later one has taken its place
            self._memory.release(self)


async def _before(ends_at: float | None, late: UaitError, waiting: Awaitable[T]) -> T:
    """Wait for something until a moment of the loop's clock, then raise what is given."""
    timer = asyncio.timeout_at(ends_at)
    try:
        async with timer:
            return await waiting
    except TimeoutError:
        if timer.expired():
            raise late from None
        raise


def _stopping() -> ModelUnavailable:
    return ModelUnavailable("The model service is stopping. Ask again when it has started.")


def _look_at(loading: asyncio.Task[WorkerProcess]) -> None:
    """Take a failure as seen: everybody who waited for it may have left, and it is kept anyway."""
    if not loading.cancelled():
        loading.exception()
