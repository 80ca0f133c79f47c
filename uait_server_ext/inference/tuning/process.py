"""The parent's side of a trainer: start it, hear it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from uait_server_ext.errors import ModelUnavailable
from uait_server_ext.inference.environment import worker_environment

MODULE = "uait_server_ext.inference.tuning.trainer"
GRACE_SECONDS = 1.5  # from the word to the kill: stop means stop within two seconds
LAST_LINES = frozenset({"done", "failed", "stopped"})
LINE_BYTES = 16 << 20
KEPT_LINES = 30


class TrainerDied(Exception):
    """The trainer ended without a last word; the message says how."""


class TrainerProcess:
    """A running trainer."""

    def __init__(self, process: asyncio.subprocess.Process, log: logging.Logger) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log
        self._said: deque[str] = deque(maxlen=KEPT_LINES)
        self._errors = asyncio.create_task(self._read_errors())

    @classmethod
    async def start(
        cls, task: dict[str, Any], *, threads: int, log: logging.Logger
    ) -> TrainerProcess:
        """Spawn a trainer with a task.

        Raises:
            ModelUnavailable: the operating system starts no process.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", MODULE),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=Path(task["folder"]),
                env=worker_environment(threads=threads),
                start_new_session=True,
                limit=LINE_BYTES,
            )
        except OSError as error:
            raise ModelUnavailable(f"No process could be started to tune in: {error}.") from error
        trainer = cls(process, log)
        trainer._say(json.dumps(task))
        return trainer

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the trainer tells, its last word included; `end` it in any case.

        Raises:
            TrainerDied: it ended without one.
        """
        stdout = self._process.stdout
        assert stdout
        while line := await stdout.readline():
            try:
                event = json.loads(line)
            except ValueError:  # cut by its death
                break
            yield event
            if event["type"] in LAST_LINES:
                return
        raise TrainerDied(await self._obituary())

    async def end(self, word: str = "cancel") -> None:
        """Let it end: by the word, and where it does not hear, by a kill; within two seconds."""
        self._say(word)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()
        await asyncio.wait([self._errors])

    def _say(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin
        if not stdin.is_closing():
            stdin.write(line.encode() + b"\n")

    async def _read_errors(self) -> None:
        stderr = self._process.stderr
        assert stderr
        rest = ""
        while chunk := await stderr.read(1 << 16):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            for line in filter(None, map(str.strip, lines)):
                self._said.append(line)
                self._log.debug("tuning: %s", line)
            rest = rest[: 1 << 16]

    async def _obituary(self) -> str:
        await self.end()
        code = self._process.returncode or 0
        if code == -signal.SIGKILL:
            return "it was killed (signal SIGKILL); the machine may be short of memory"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = f"; it said last: {self._said[-1]}" if self._said else ""
        return f"it ended with {how}{said}"
