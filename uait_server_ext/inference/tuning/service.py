"""Tuning jobs: start, follow, cancel, resume; one runs at a time, each in a process of its own.

A job is its rows in the journal and its folder, ``<data>/tuning/<job>``. Whoever takes it on, a
server or a command, holds the folder's lock until it has ended. A server that stops lets the
trainer keep a checkpoint; one that is killed leaves the last one. The next start goes on from it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from uait_server_ext.errors import (
    Conflict,
    DependencyMissing,
    InvalidInput,
    PermissionDenied,
    UaitError,
)
from uait_server_ext.inference import machine
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.library import Library
from uait_server_ext.inference.models import ServiceState
from uait_server_ext.paths import named_path, private_folder
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, new_id, now

from .data import Examples, read_examples, report_of
from .job import Outcome, run_job
from .journal import Journal
from .models import ENDED, DataReport, Fused, FuseRequest, TuneEvent, TuneJob, TuneRequest
from .process import TrainerDied, TrainerProcess
from .trainer import EXAMPLES

FOLLOW_SECONDS = 0.5  # between two looks at a job that another process runs
HOLDER = "holder.lock"
FORMATS = ("gguf", "mlx")
NEEDED = ("mlx", "mlx_lm")
MOST_INTERRUPTIONS = 3


class Tuning:
    """Runs tuning jobs; `start` before use, `stop` at the end.

    Args:
        library: the models of this machine, which finished adapters are put into.
        folder: where jobs keep data, checkpoints and adapters.
        allowed_roots: folders from which examples may be read; a relative path is in the first.
    """

    def __init__(
        self,
        *,
        database: Database,
        library: Library,
        folder: Path,
        allowed_roots: Sequence[Path],
        threads: int | None = None,
        clock: Clock = now,
        log: logging.Logger,
    ) -> None:
        self._journal = Journal(database, clock=clock)
        self.library = library
        self._catalogue = library.catalogue
        self._cache = library.cache
        self._folder = private_folder(folder)
        self._allowed_roots = tuple(root.resolve() for root in allowed_roots)
        self._threads = threads or machine.default_threads()
        self._log = log
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._held: dict[str, IO[bytes]] = {}
        self._running: tuple[str, asyncio.Task[Outcome]] | None = None
        self._wanted_end: dict[str, str] = {}  # job: the word it ends by
        self._changed = asyncio.Condition()
        self._worker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self, *, recover: bool = True) -> None:
        """Begin to work; jobs that an earlier process left unfinished go on, unless told not to."""
        self._worker = asyncio.create_task(self._work())
        if not recover:
            return
        task = asyncio.create_task(self._recover())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End within two seconds; the job that runs keeps a checkpoint and waits for a start."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._running is not None:
            job, run = self._running
            self._wanted_end.setdefault(job, "stop")
            run.cancel()
        if self._worker is not None:
            if self._running is None:
                self._worker.cancel()
            await asyncio.wait([self._worker])
        for lock in self._held.values():
            lock.close()
        self._held.clear()
        await self._wake()

    @property
    def running(self) -> str | None:
        """The job that runs in this process."""
        return self._running[0] if self._running else None

    def state(self) -> list[ServiceState]:
        """Return how tuning stands, for the health report."""
        waiting = self._queue.qsize()
        detail = "1 job runs" if self._running else "no job runs"
        return [ServiceState("tuning", "ready", detail + (f", {waiting} wait" if waiting else ""))]

    async def check(self, request: TuneRequest) -> DataReport:
        """Read the examples of a request and report on them, without starting anything.

        Raises:
            InvalidInput, NotFound, TooLarge, PermissionDenied: see `read_examples`.
        """
        return report_of(await self._examples(request))

    async def create(self, owner: str, request: TuneRequest) -> TuneJob:
        """Queue a job; its examples are copied, so that they may change meanwhile.

        Raises:
            InvalidInput: the examples, or a model that cannot be tuned.
            Conflict: the model has an adapter of that name.
            ModelNotFound, ModelUnavailable, DependencyMissing: the base model cannot be used here.
        """
        entry = await asyncio.to_thread(self._base, request)
        examples = await self._examples(request)
        job = new_id("tune")
        folder = private_folder(self._folder / job)
        await asyncio.to_thread(examples.save, folder / EXAMPLES)
        self._take(job)
        created = await self._journal.create(
            job,
            {
                "owner": owner,
                "name": request.name,
                "model": entry.id,
                "settings": request.settings.model_dump_json(),
                "data": report_of(examples).model_dump_json(),
            },
        )
        self._queue.put_nowait(job)
        return created

    async def jobs(self, owner: str | None) -> list[TuneJob]:
        """Return the jobs of an owner, or of all where that is None; newest first."""
        return await self._journal.jobs(owner)

    async def job(self, job: str, owner: str | None = None) -> TuneJob:
        """Return a job. Raises ``NotFound``."""
        return await self._journal.job(job, owner)

    async def events(
        self, job: str, owner: str | None = None, *, after: int = 0
    ) -> AsyncGenerator[TuneEvent, None]:
        """Yield the events of a job behind a sequence, and those that come, until it has ended.

        Raises:
            NotFound: there is no such job.
        """
        await self._journal.job(job, owner)
        while True:
            ended = self._stopping or (await self._journal.job(job)).state in ENDED
            events = await self._journal.events(job, after)
            for event in events:
                after = event.sequence
                yield event
            if events:
                continue
            if ended:
                return
            async with self._changed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FOLLOW_SECONDS):
                        await self._changed.wait()

    async def history(self, job: str) -> AsyncGenerator[TuneEvent, None]:
        """Yield the events that a job has had so far. Raises ``NotFound``."""
        await self._journal.job(job)
        after = 0
        while events := await self._journal.events(job, after):
            for event in events:
                yield event
            after = events[-1].sequence

    async def cancel(self, job: str, owner: str | None = None) -> TuneJob:
        """End a job within two seconds; its checkpoints stay.

        Raises:
            Conflict: it has ended, or another process runs it.
        """
        found = await self._journal.job(job, owner)
        if found.state in ENDED:
            raise Conflict(f"The job {job} has ended: it is {found.state}.")
        if job not in self._held and not self._take_or_none(job):
            raise Conflict(
                f"The job {job} is run by another process (a `uait tune run`?). End it there."
            )
        self._wanted_end[job] = "cancel"
        if self._running is not None and self._running[0] == job:
            run = self._running[1]
            run.cancel()
            await asyncio.wait([run])
            await self._settled(job)
        else:
            await self._end(job, "cancelled", "")
        return await self._journal.job(job)

    async def resume(self, job: str, owner: str | None = None) -> TuneJob:
        """Let a failed or cancelled job go on from its checkpoint.

        Raises:
            Conflict: it has not ended, or is completed.
        """
        found = await self._journal.job(job, owner)
        if found.state not in ("failed", "cancelled"):
            raise Conflict(
                f"The job {job} is {found.state}; only a failed or cancelled one goes on."
            )
        if not (self._folder / job / EXAMPLES).exists():
            raise Conflict(f"The files of {job} are gone. Start a new job.")
        self._take(job)
        self._wanted_end.pop(job, None)
        await self._journal.set_state(job, "queued", interruptions=0)
        self._queue.put_nowait(job)
        return await self._journal.job(job)

    async def delete(self, job: str, owner: str | None = None) -> None:
        """Delete a job that has ended, with its files; an adapter in the catalogue stays.

        Raises:
            Conflict: it has not ended.
        """
        found = await self._journal.job(job, owner)
        if found.state not in ENDED:
            raise Conflict(f"The job {job} is {found.state}. Cancel it first.")
        await self._journal.delete(job)
        await asyncio.to_thread(shutil.rmtree, self._folder / job, ignore_errors=True)

    async def fuse(self, job: str, request: FuseRequest, owner: str | None = None) -> Fused:
        """Write the base model with the adapter worked in; cancelling ends the process.

        Raises:
            Conflict: the job is not completed.
            ModelUnavailable: the model cannot be loaded, or the process died.
        """
        found = await self._journal.job(job, owner)
        if found.state != "completed":
            raise Conflict(f"The job {job} is {found.state}; only a completed one can be fused.")
        entry = self._catalogue.get(found.model, "chat")
        folder = self._folder / job
        task = self._task(folder, entry) | {
            "mode": "fuse",
            "adapter": str(folder / "adapter"),
            "target": str(folder / ("fused" if request.unpacked else "fused-packed")),
            "unpacked": request.unpacked,
        }
        trainer = await TrainerProcess.start(task, threads=self._threads, log=self._log)
        try:
            async for said in trainer.events():
                if said["type"] == "done":
                    return Fused(folder=said["folder"], size_bytes=said["size_bytes"])
                if said["type"] == "failed":
                    raise InvalidInput(f"The model could not be written: {said['detail']}")
        except TrainerDied as error:
            raise Conflict(f"The model could not be written: {error}.") from None
        finally:
            await trainer.end()
        raise Conflict("The model could not be written: the process was stopped.")

    def _base(self, request: TuneRequest) -> CatalogueEntry:
        """Return the base model's entry; its files are here and it can be tuned."""
        entry = self._catalogue.get(request.model, "chat")
        if entry.format not in FORMATS:
            raise InvalidInput(
                f"{entry.id} cannot be tuned: it does not run in MLX. Choose another chat model."
            )
        if missing := [name for name in NEEDED if not machine.has_module(name)]:
            raise DependencyMissing(
                f"Tuning needs {' and '.join(missing)}: install the extra 'uait[linux-cpu]' (Linux "
                "without a GPU), or mlx-lm."
            )
        self._cache.source(entry)
        if any(known.name == request.name for known in self.library.registry.adapters(entry.id)):
            raise Conflict(
                f"{entry.id} has an adapter '{request.name}' already. Choose another name, or "
                f"remove it: `uait models remove {entry.id}+{request.name}`."
            )
        return entry

    async def _examples(self, request: TuneRequest) -> Examples:
        return await asyncio.to_thread(self._read, request)

    def _read(self, request: TuneRequest) -> Examples:
        path = named_path(request.data, self._allowed_roots[0])
        if not any(path.is_relative_to(root) for root in self._allowed_roots):
            folders = ", ".join(map(str, self._allowed_roots))
            raise PermissionDenied(f"Examples may be read from {folders} only. Put them there.")
        return read_examples(path, valid_share=request.valid_share, seed=request.settings.seed)

    def _task(self, folder: Path, entry: CatalogueEntry) -> dict[str, Any]:
        return {
            "folder": str(folder.absolute()),
            "cache": str(self._cache.root.absolute()),
            "entry": entry.model_dump(mode="json"),
            "model": entry.id,
        }

    async def take_on(self, job: str) -> None:
        """Go on with a job that a process left unfinished when it ended.

        Raises:
            Conflict: another process has it, or it has ended.
            NotFound: there is no such job.
        """
        found = await self._journal.job(job)
        if found.state in ENDED:
            raise Conflict(f"The job {job} has ended: it is {found.state}.")
        self._take(job)
        if found.state == "running":
            count = await self._journal.interrupted(job)
            if count > MOST_INTERRUPTIONS:
                detail = (
                    f"It was interrupted {count} times without getting further: the machine may be "
                    "short of memory. Resume it, or start a job with a smaller batch."
                )
                await self._end(job, "failed", detail)
                return
            await self._journal.set_state(job, "queued", "It was interrupted.")
        self._queue.put_nowait(job)

    async def _recover(self) -> None:
        """Take on what was left unfinished; what another process still runs is left to it."""
        for job in await self._journal.unfinished():
            if job in self._held:
                continue
            try:
                await self.take_on(job)
            except UaitError as error:
                self._log.info("the tuning job %s is left as it is: %s", job, error.detail)

    async def _work(self) -> None:
        while not self._stopping:
            job = await self._queue.get()
            if job in self._wanted_end or job not in self._held:
                continue
            await self._run(job)

    async def _run(self, job: str) -> None:
        """Run one job and put it into the state in which it ended."""
        run = asyncio.create_task(self._carry_out(job))
        self._running = job, run
        try:
            await asyncio.wait([run])
            if not run.cancelled() and (error := run.exception()) is None:
                outcome = run.result()
                await self._end(job, outcome.state, outcome.detail, **outcome.changes)
            elif run.cancelled() and self._wanted_end.get(job) == "cancel":
                await self._end(job, "cancelled", "")
            elif run.cancelled():
                await self._journal.set_state(job, "queued", "It goes on when the server starts.")
            elif isinstance(error, UaitError):
                await self._end(job, "failed", error.detail)
            else:
                self._log.error("the tuning job %s failed", job, exc_info=error)
                await self._end(job, "failed", f"{type(error).__name__}: {error}")
        finally:
            self._running = None
            await self._wake()

    async def _carry_out(self, job: str) -> Outcome:
        found = await self._journal.job(job)
        entry = self._catalogue.get(found.model, "chat")
        folder = self._folder / job
        await self._journal.set_state(job, "running")
        await self._wake()
        task = self._task(folder, entry) | {
            "mode": "tune",
            "settings": found.settings.model_dump(mode="json"),
        }
        return await run_job(
            task,
            found,
            journal=self._journal,
            library=self.library,
            threads=self._threads,
            heard=self._wake,
            word=lambda: self._wanted_end.get(job, "stop"),
            log=self._log,
        )

    async def _end(self, job: str, state: Any, detail: str, **changes: Any) -> None:
        await self._journal.set_state(job, state, detail, **changes)
        if (lock := self._held.pop(job, None)) is not None:
            lock.close()
        await self._wake()

    async def _settled(self, job: str) -> None:
        """Wait until a job that was told to end is in its last state."""
        while self._running is not None and self._running[0] == job:
            async with self._changed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FOLLOW_SECONDS):
                        await self._changed.wait()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _take(self, job: str) -> None:
        if not self._take_or_none(job):
            raise Conflict(f"The job {job} is held by another process. Wait until it has ended.")

    def _take_or_none(self, job: str) -> bool:
        """Hold a job's folder, if nobody else does."""
        folder = self._folder / job
        if not folder.is_dir():
            return False
        if job in self._held:
            return True
        lock = (folder / HOLDER).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._held[job] = lock
        return True
