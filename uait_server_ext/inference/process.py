"""The parent's side of one model worker process: start it, talk to it, notice its death.

The child is spawned, never forked, in a session of its own (Ctrl-C in a terminal is for the server,
which then ends its children) and with an environment that holds no secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uait_server_ext import errors
from uait_server_ext.errors import ModelUnavailable, UaitError, WorkerDied

from . import protocol
from .protocol import Frame

MODULE = "uait_server_ext.inference.worker"
LOAD_SECONDS = 600.0
CANCEL_SECONDS = 2.0
STOP_SECONDS = 1.0
KEPT_LINES = 50
READ_BYTES = 1 << 16

ALLOWED = frozenset(
    (
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "PYTHONPATH",
        "PYTHONHOME",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
    )
)
ALLOWED_PREFIXES = ("LC_", "COVERAGE_")
LAST_FRAMES = frozenset({"done", "vectors", "error", "cancelled"})


class Request:
    """One request under way; yields frames up to its last one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.frames: asyncio.Queue[Frame | UaitError] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def next(self) -> Frame:
        """Return the next frame. Raises what the worker reported, or ``WorkerDied``."""
        item = await self.frames.get()
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
        self._stopping = False

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

    def submit(self, message: dict[str, Any]) -> Request:
        """Send a request; its frames are read from what is returned."""
        request = Request(next(self._numbers))
        self._requests[request.number] = request
        self._send({**message, "id": request.number})
        return request

    async def cancel(self, request: Request) -> None:
        """End a request; returns when the worker has let go of it, or has been killed."""
        if request.ended.is_set():
            return
        self._send({"type": "cancel", "id": request.number})
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await request.ended.wait()
        except TimeoutError:
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
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
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
            number = frame.message["id"]
            if frame.message["type"] in LAST_FRAMES:
                request = self._requests.pop(number)
                request.ended.set()
            else:
                request = self._requests[number]
            request.frames.put_nowait(frame)
        self._stopping = True  # no request may be sent to it any more
        died = WorkerDied(
            f"The worker process of {self.name} ended in the middle of the answer: "
            f"{await self._obituary()} Ask again; it starts anew with the next request."
        )
        for request in self._requests.values():
            request.frames.put_nowait(died)
            request.ended.set()
        self._requests.clear()

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
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        code = await self._process.wait()
        await asyncio.wait([self._errors], timeout=STOP_SECONDS)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = [line for line in self._lines if line.startswith("Fatal Python error")]
        said = [*self._lines, *lines][-1:]  # after a fatal error come stacks, which help nobody
        return f"{how}.{f' It said last: {said[0]}' if said else ''}"


def worker_environment(*, threads: int) -> dict[str, str]:
    """Return the environment of a worker: what it needs of ours, no tokens, no passwords."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
    }
    path = [*_own_package(), *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        **({"PYTHONPATH": os.pathsep.join(path)} if path else {}),
        "HF_HUB_OFFLINE": "1",  # what a model needs was fetched before
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        # threads that wait for each other give up the core soon instead of spinning on it
        "GOMP_SPINCOUNT": "1000",
        # a second BLAS thread gains a quarter on an idle machine and loses tenfold on a busy one
        "OPENBLAS_NUM_THREADS": "1",
    }


def _own_package() -> Iterator[str]:
    """Yield the folder that this package was imported from, if it is a checkout."""
    root = Path(errors.__file__).parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        yield str(root)


def _error(message: dict[str, Any]) -> UaitError:
    """Build the error that a worker reported."""
    known = {kind.code: kind for kind in _subclasses(UaitError)}
    kind = known.get(message["code"], UaitError)
    return kind(message["detail"], **message["extensions"])


def _subclasses(kind: type[UaitError]) -> Iterator[type[UaitError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _subclasses(child)
