"""The parent's side of one model worker process: start it, talk to it, notice its death.

The child is spawned, never forked, in a session of its own (Ctrl-C in a terminal is for the server,
which then ends its children) and with an environment that holds no secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uait_server_ext.errors import ModelUnavailable, UaitError, WorkerDied

from . import protocol
from .protocol import Frame

MODULE = "uait_server_ext.inference.worker"
LOAD_SECONDS = 600.0
CANCEL_SECONDS = 2.0  # a worker that says nothing at all for so long is stuck
LONGEST_CANCEL_SECONDS = 10.0
SILENT_SECONDS = 60.0  # with requests under way; one that computes gives a sign every second
STOP_SECONDS = 1.0
KEPT_LINES = 50
READ_BYTES = 1 << 16

LAST_FRAMES = frozenset({"done", "vectors", "error", "cancelled"})


class Request:
    """One request under way; yields frames up to its last one.

    ``on_end`` is called when the worker has let go of it, whether or not its frames are read.
    """

    def __init__(self, number: int, on_end: Callable[[], None] = lambda: None) -> None:
        self.number = number
        self.ended = asyncio.Event()
        self._frames: asyncio.Queue[Frame | UaitError] = asyncio.Queue()
        self._on_end = on_end

    def put(self, item: Frame | UaitError) -> None:
        """Give the reader the next frame, or the error that ends it."""
        self._frames.put_nowait(item)

    def end(self) -> None:
        """Note that the worker does nothing for it any more."""
        if not self.ended.is_set():
            self.ended.set()
            self._on_end()

    async def next(self) -> Frame:
        """Return the next frame. Raises what the worker reported, or ``WorkerDied``."""
        item = await self._frames.get()
        if isinstance(item, UaitError):
            raise item
        if item.message["type"] == "error":
            raise _error(item.message)
        return item


class WorkerProcess:
    """A running worker with one loaded model."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: logging.Logger) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._numbers = itertools.count(1)
        self._requests: dict[int, Request] = {}
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._errors = asyncio.create_task(self._read_errors())
        self._frames: asyncio.Task[None] | None = None
        self._cancels: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._heard = 0
        self._stopping = False
        self._killed = False
        self._hung = False

    @classmethod
    async def start(
        cls, name: str, load: dict[str, Any], *, cwd: Path, environment: dict[str, str],
        log: logging.Logger,
    ) -> tuple[WorkerProcess, dict[str, Any]]:  # fmt: skip
        """Spawn a worker and load a model in it; return it and what it says of the model.

        Raises ``ModelUnavailable`` with the reason when the model cannot be loaded.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=cwd,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:  # no memory, no processes, no such folder
            raise ModelUnavailable(
                f"No worker process could be started for {name}: {error}."
            ) from error
        worker = cls(name, process, log)
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                ready = await worker._load(load)
        except BaseException as error:
            await worker.kill()
            if isinstance(error, TimeoutError):
                raise ModelUnavailable(
                    f"{name} was not loaded within {LOAD_SECONDS:.0f} s. The machine may be short "
                    "of memory; try a smaller model."
                ) from error
            raise
        worker._frames = asyncio.create_task(worker._read_frames())
        return worker, ready

    @property
    def alive(self) -> bool:
        """Whether requests can be sent."""
        return self._process.returncode is None and not self._stopping

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Have a function called when the process has ended."""
        assert self._frames
        self._frames.add_done_callback(lambda _: callback())

    def submit(self, message: dict[str, Any], on_end: Callable[[], None]) -> Request:
        """Send a request; its frames are read from what is returned.

        ``on_end`` is called once, when the worker has let go of it or has died.
        """
        request = Request(next(self._numbers), on_end)
        self._requests[request.number] = request
        self._send({**message, "id": request.number})
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return request

    def cancel(self, request: Request, reason: UaitError | None = None) -> None:
        """End a request, telling its reader the reason; a worker that does not let go is killed.

        Does not wait: ``request.ended`` is set when the worker has let go of it.
        """
        if request.ended.is_set():
            return
        if reason is not None:
            request.put(reason)
        self._send({"type": "cancel", "id": request.number})
        task = asyncio.create_task(self._see_to(request))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _watch(self) -> None:
        """End the process where it gives no sign while it has requests."""
        pause = SILENT_SECONDS / 20
        heard, silent = -1, 0.0
        while self._requests:
            if heard != self._heard:
                heard, silent = self._heard, 0.0
            elif silent >= SILENT_SECONDS:
                self._log.warning("%s gave no sign for %.0f s; ending it", self.name, silent)
                self._hung = True
                await self.kill()
                return
            await asyncio.sleep(pause)
            silent += pause

    async def _see_to(self, request: Request) -> None:
        """Wait until a cancelled request has ended; kill the worker where it is stuck."""
        waited = 0.0
        heard = -1
        while heard != self._heard and waited < LONGEST_CANCEL_SECONDS:
            heard = self._heard
            try:
                async with asyncio.timeout(CANCEL_SECONDS):
                    await request.ended.wait()
            except TimeoutError:
                waited += CANCEL_SECONDS
            else:
                return
        self._log.warning("%s did not let go of a cancelled request; ending it", self.name)
        await self.kill()

    async def stop(self) -> None:
        """End the process: ask, close its input, kill; within about a second."""
        self._stopping = True
        self._send({"type": "stop"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End the process now and wait until it is gone."""
        self._stopping = self._killed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._watching is not None and self._watching is not asyncio.current_task():
            self._watching.cancel()
        assert self._process.stdin
        self._process.stdin.close()
        await asyncio.gather(*(task for task in (self._frames, self._errors) if task))

    async def _load(self, load: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdout
        self._send({"type": "load", **load})
        frame = await protocol.read_async(self._process.stdout)
        if frame is not None and frame.message["type"] == "ready":
            return frame.message
        if frame is None:
            raise ModelUnavailable(f"{self.name} could not be loaded: {await self._obituary()}")
        reason = _error(frame.message)
        if isinstance(reason, ModelUnavailable):
            raise reason
        raise ModelUnavailable(f"{self.name} could not be loaded: {reason.detail}")

    def _send(self, message: dict[str, Any]) -> None:
        stdin = self._process.stdin
        assert stdin
        if not stdin.is_closing():  # a closed pipe is noticed by the reading task
            stdin.write(protocol.encode(message))

    async def _read_frames(self) -> None:
        stdout = self._process.stdout
        assert stdout
        while (frame := await protocol.read_async(stdout)) is not None:
            self._heard += 1
            if frame.message["type"] == "alive":
                continue
            request = self._requests[frame.message["id"]]
            request.put(frame)
            if frame.message["type"] in LAST_FRAMES:
                del self._requests[request.number]
                request.end()
        self._stopping = True  # no request may be sent to it any more
        died = WorkerDied(
            f"The worker process of {self.name} ended in the middle of the answer: "
            f"{await self._obituary()} Ask again; it starts anew with the next request."
        )
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.put(died)
            request.end()

    async def _read_errors(self) -> None:
        stderr = self._process.stderr
        assert stderr
        rest = ""
        while chunk := await stderr.read(READ_BYTES):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            for line in filter(None, map(str.strip, [*lines, rest[READ_BYTES:]])):
                self._lines.append(line)
                self._log.debug("%s: %s", self.name, line)
            rest = rest[:READ_BYTES]
        if rest.strip():
            self._lines.append(rest.strip())

    async def _obituary(self) -> str:
        """Say how the process ended and what it said last."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        if self._process.returncode is None:
            self._killed = True
            self._process.kill()
        code = await self._process.wait()
        await asyncio.wait([self._errors], timeout=STOP_SECONDS)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._hung:
            how += f" (it gave no sign for {SILENT_SECONDS:g} s)"
        if code == -signal.SIGKILL and not self._killed:
            how += " (so ends what takes more memory than there is)"
        lines = [line for line in self._lines if line.startswith("Fatal Python error")]
        said = [*self._lines, *lines][-1:]  # after a fatal error come stacks, which help nobody
        return f"{how}.{f' It said last: {said[0]}' if said else ''}"


def _error(message: dict[str, Any]) -> UaitError:
    """Build the error that a worker reported."""
    known = {kind.code: kind for kind in _subclasses(UaitError)}
    kind = known.get(message["code"], UaitError)
    return kind(message["detail"], **message["extensions"])


def _subclasses(kind: type[UaitError]) -> Iterator[type[UaitError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)
