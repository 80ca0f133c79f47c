"""A Jupyter server of our own for one piece of work, and its end afterwards.

The server makes its own token and writes it to its runtime file (mode 0600), from where
`uait_kernel` takes it: no secret is in a command line or an environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from uait_server_ext.errors import Unavailable

START_SECONDS = 60.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class OwnServer:
    """A running server that this process started."""

    url: str
    token: str = field(repr=False)
    pid: int


@contextmanager
def own_server(
    root_dir: Path,
    *,
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    log: Path | None = None,
) -> Iterator[OwnServer]:
    """Start a Jupyter server with UAIT on a free loopback port and stop it at the end.

    Args:
        root_dir: the server's root.
        options: traits of `UaitApp`.
        environment: added to the server's environment.
        arguments: added to the command line.
        log: where the server's log goes; none: a temporary file that is dropped.

    Raises:
        Unavailable: it did not start; the message holds the last lines of its log.
    """
    with tempfile.TemporaryDirectory(prefix="uait-server-") as folder:
        log_path = log or Path(folder) / "server.log"
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(configuration(root_dir, options or {})), encoding="utf-8")
        with log_path.open("ab") as log_file:
            process = start(config, environment or {}, arguments, log_file)
            try:
                yield wait_until_ready(process, log_path)
            finally:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def configuration(root_dir: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the server's configuration: loopback, a free port, authentication on."""
    return {
        "ServerApp": {
            "ip": "127.0.0.1",
            "port": 0,
            "open_browser": False,
            "root_dir": str(root_dir.resolve()),
            "allow_unauthenticated_access": False,
            # A server for one run on loopback; a container's only user is often root.
            "allow_root": hasattr(os, "geteuid") and os.geteuid() == 0,
            "jpserver_extensions": {"uait_server_ext": True},
        },
        "UaitApp": dict(options),
    }


def start(
    config: Path, environment: Mapping[str, str], arguments: Sequence[str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start the server process."""
    return subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", f"--config={config}", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> OwnServer:
    """Wait until the server's UAIT services are ready."""
    from jupyter_core.paths import jupyter_runtime_dir

    from uait_kernel.client import Client
    from uait_kernel.errors import UaitClientError

    runtime = Path(jupyter_runtime_dir()) / f"jpserver-{process.pid}.json"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            info = json.loads(runtime.read_text(encoding="utf-8"))
            server = OwnServer(loopback(info["url"]), info["token"], process.pid)
            if Client(server.url, server.token).health()["ready"]:
                return server
        except (OSError, ValueError, UaitClientError):
            pass  # not there yet
        time.sleep(0.1)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise Unavailable(f"The Jupyter server did not start. The end of its log:\n{tail}")


def loopback(url: str) -> str:
    """Replace a name like `localhost` by 127.0.0.1, which the server really listens on."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"127.0.0.1:{parts.port}"))
