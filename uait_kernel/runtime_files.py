"""What Jupyter's runtime folder tells about the servers of this person on this machine.

A server writes `jpserver-<pid>.json` (mode 0600) with its address and token. The files are read
here without `jupyter_server`, whose import takes two seconds.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .endpoint import Endpoint, Token, parse_address
from .errors import UsageMistake


@dataclass(frozen=True)
class RunningServer:
    """A Jupyter server as its runtime file describes it; it may be without UAIT, or dead."""

    endpoint: Endpoint
    token: Token
    password_only: bool
    pid: int
    written: float


def runtime_folder() -> Path:
    """Return Jupyter's runtime folder of this person."""
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir())


def server_of_process(folder: Path, pid: int) -> RunningServer | None:
    """Return the server that runs as this process, or None."""
    return _read(folder / f"jpserver-{pid}.json")


def running_servers(folder: Path) -> list[RunningServer]:
    """Return the servers whose process is alive, newest first."""
    try:
        paths = list(folder.glob("jpserver-*.json"))
    except OSError:
        return []
    servers = [server for path in paths if (server := _read(path)) and is_alive(server.pid)]
    return sorted(servers, key=lambda server: server.written, reverse=True)


def is_alive(pid: int) -> bool:
    """Tell whether a process exists. On Windows asking would end it, so there it is assumed."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # there, but somebody else's
    return True


def _read(path: Path) -> RunningServer | None:
    """Read a runtime file; None where it is gone, unreadable or of a server without an address."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = path.stat().st_mtime
        endpoint, _ = parse_address(str(content["url"]))
        token = Token(str(content.get("token") or ""))
        pid = int(content["pid"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, UsageMistake):
        return None  # another program's file, half-written, or a server on a Unix socket
    password_only = not token and bool(content.get("password"))
    return RunningServer(endpoint, token, password_only, pid, written)
