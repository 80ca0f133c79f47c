"""The reading process: reads files on request, so that a hostile one harms nobody else.

Requests and answers are frames on standard input and output: four bytes of length, then JSON (a
pickle from a process that a hostile file has taken over would take over the server).

It is started by `reader.Reader` as ``python -P -m``: the current folder, which holds the user's
files, is not on its import path, and the server's main module is not imported.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.read import read

LENGTH = struct.Struct(">I")
MAX_MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer requests until standard input ends."""
    requests = sys.stdin.buffer
    # Whatever a library prints must not come between the frames.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _limit_memory()
    while (request := receive(requests)) is not None:
        _set_alarm(request["seconds"])
        send(answers, answer(request))
        _set_alarm(0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Read the file that a request names; the answer has the reading or an error for people."""
    path = Path(request["path"])
    try:
        reading = read(path, request["known_sha256"], request["max_bytes"])
    except UnsupportedDocument as error:
        return {"error": error.detail}
    except OSError as error:
        return {"error": f"The file cannot be opened: {error.strerror}."}
    except MemoryError:
        return {"error": "Reading the file takes more memory than there is: split the file."}
    except Exception as error:
        # This is the edge of a parser: whatever it stumbles over is this file's report.
        return {"error": f"The file cannot be read ({type(error).__name__}: {error})."[:500]}
    return asdict(reading)


def receive(stream: IO[bytes], max_bytes: int = 1 << 30) -> dict[str, Any] | None:
    """Read one frame; None at the end of the stream.

    Raises:
        EOFError: the stream ended within a frame.
        ValueError: the frame is larger than ``max_bytes`` or no JSON object.

    """
    head = stream.read(LENGTH.size)
    if not head:
        return None
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    if length > max_bytes:
        raise ValueError("frame too large")
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    frame = json.loads(body)
    if not isinstance(frame, dict):
        raise ValueError("no object")
    return frame


def send(stream: IO[bytes], frame: dict[str, Any]) -> None:
    """Write one frame."""
    body = json.dumps(frame).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _set_alarm(seconds: int) -> None:
    """End this process if the server is gone while a file hangs."""
    if sys.platform != "win32":
        signal.alarm(seconds)


if __name__ == "__main__":
    main()
