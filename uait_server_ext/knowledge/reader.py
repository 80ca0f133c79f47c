"""The server's side of the reading process: one file at a time, with a time limit.

A file at which the process hangs or dies is reported; the process is started anew for the next.
"""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.chunk import Passage
from uait_server_ext.knowledge.reading.process import receive, send
from uait_server_ext.knowledge.reading.read import Reading

SECONDS_EACH = 60.0
MODULE = "uait_server_ext.knowledge.reading.process"


class Reader:
    """Reads files in a process of its own, which is started with the first; one call at a time."""

    def __init__(self, *, max_file_bytes: int, seconds_each: float = SECONDS_EACH) -> None:
        self._max_file_bytes = max_file_bytes
        self._seconds_each = seconds_each
        self._process: subprocess.Popen[bytes] | None = None

    async def read(self, path: Path, known_sha256: str | None) -> Reading:
        """Read a file; its passages are None where its content has the known hash.

        Cancelling kills the process.

        Raises:
            UnsupportedDocument: it cannot be read; the message says why and what to do.

        """
        request = {
            "path": str(path),
            "known_sha256": known_sha256,
            "max_bytes": self._max_file_bytes,
            "seconds": math.ceil(self._seconds_each) + 5,
        }
        reading = None
        try:
            process = await self._running()
            with anyio.fail_after(self._seconds_each):
                reading = await anyio.to_thread.run_sync(
                    _exchange, process, request, abandon_on_cancel=True
                )
        except TimeoutError:
            raise UnsupportedDocument(
                f"Reading the file took longer than {self._seconds_each:.0f} s, so it was given "
                "up: the file may be damaged; save it anew or split it."
            ) from None
        except (EOFError, OSError, ValueError, TypeError, KeyError):
            raise UnsupportedDocument(
                "Reading the file crashed its reader (nothing else was harmed): the file may be "
                "damaged; save it anew."
            ) from None
        finally:
            if reading is None:
                await self.close()
        if isinstance(reading, str):
            raise UnsupportedDocument(reading)
        return reading

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_reap, process)

    async def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = await anyio.to_thread.run_sync(_start)
        return self._process


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _exchange(process: subprocess.Popen[bytes], request: dict[str, Any]) -> Reading | str:
    assert process.stdin
    assert process.stdout
    send(process.stdin, request)
    answer = receive(process.stdout)
    if answer is None:
        raise EOFError
    return _reading(answer)


def _reading(answer: dict[str, Any]) -> Reading | str:
    """Return what was read, or the error; a hostile file may have answered in its place."""
    if "error" in answer:
        return str(answer["error"])
    passages = answer.pop("passages")
    if passages is not None:
        passages = [Passage(**{**p, "headings": tuple(p["headings"])}) for p in passages]
    return Reading(**answer, passages=passages)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        with suppress(OSError):
            pipe.close()
