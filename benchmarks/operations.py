"""Measure what an authenticated operation costs beside a bare handler of a Jupyter server.

    python benchmarks/operations.py [--quick] [--check]

Two servers of their own processes: `jupyter server` with token login and one handler written by
hand, and `uait lab` with its login, route policy, rate limit, validation and headers. One client
asks both in turns over one kept connection each. Then 64 callers ask UAIT while ten people log in
with passwords again and again. ``--check`` fails where the ratio or the p95 is over its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir

from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.principal import ROLES
from uait_server_ext.identity.service import Identity, IdentitySettings
from uait_server_ext.identity.token_models import ApiKeyRequest
from uait_server_ext.services import Settings, open_foundation, open_identity

MOST_OVERHEAD = 2.0
MOST_P95_SECONDS = 0.2
CALLERS = 64
LOGINS = 10
PASSWORD = "a long enough pass phrase"
UNLIMITED = {"user": 10_000_000, "key": 10_000_000, "ip": 10_000_000}


@dataclass
class Server:
    """Where a server listens and what lets a program in."""

    port: int
    path: str
    token: str


class Connection:
    """One kept HTTP/1.1 connection; as little client as can be, for it is measured, too."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.request = (
            f"GET {server.path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            f"Authorization: Bearer {server.token}\r\n\r\n"
        ).encode()

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def ask(self) -> float:
        """Send the request and return the seconds until its answer is there."""
        return await self.send(self.request, 200)

    async def send(self, request: bytes, expected: int) -> float:
        """Send bytes and return the seconds until the answer is there."""
        began = time.perf_counter()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        spent = time.perf_counter() - began
        if int(head.split(b" ", 2)[1]) != expected:
            raise SystemExit(f"the server answered {head[:60]!r} {body[:300]!r}")
        return spent


@contextmanager
def process(command: list[str], folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a server and yield its port and runtime file."""
    log = (folder / "server.log").open("wb")
    environment = {**os.environ, "PYTHONPATH": search_path()}
    running = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        file = Path(jupyter_runtime_dir()) / f"jpserver-{running.pid}.json"
        deadline = time.monotonic() + 60
        while not file.exists():
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "server.log").read_text(errors="replace")[-3000:])
            time.sleep(0.1)
        time.sleep(1)
        info = json.loads(file.read_text())
        yield info["port"], info
    finally:
        running.terminate()
        running.wait()
        log.close()


def search_path() -> str:
    """Return a PYTHONPATH with the bare extension."""
    here = str(Path(__file__).parent)
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])


def common(root: Path) -> list[str]:
    """Return the options that both servers have."""
    options = ["--ip=127.0.0.1", "--port=0", "--no-browser", f"--ServerApp.root_dir={root}"]
    return [*options, "--allow-root"] if os.name != "nt" and os.geteuid() == 0 else options


@contextmanager
def bare_server(folder: Path) -> Iterator[Server]:
    """Run a Jupyter server with token login and the bare handler."""
    command = [
        *(sys.executable, "-m", "jupyter_server"),
        *common(folder),
        "--ServerApp.jpserver_extensions={'bare_extension': True}",
        "--ServerApp.allow_unauthenticated_access=False",
    ]
    with process(command, folder) as (port, info):
        yield Server(port, "/bare/health", info["token"])


@contextmanager
def uait_server(folder: Path) -> Iterator[tuple[Server, list[str]]]:
    """Run `uait lab` with people and an API key; yield it and the user names."""
    state = folder / "state"
    command = [
        *(sys.executable, "-m", "uait_server_ext", "lab"),
        *common(folder),
        f"--UaitApp.data_dir={state}",
        f"--UaitApp.rate_limits={dict.fromkeys(('read', 'probe', 'login'), UNLIMITED)}",
    ]
    with process(command, folder) as (port, _):
        settings = Settings(data_dir=state, model_cache=state, root_dir=folder)
        foundation = open_foundation(settings)
        try:
            identity = open_identity(IdentitySettings(), foundation)
            key, names = asyncio.run(prepare(identity))
        finally:
            foundation.close()
        yield Server(port, "/uait/v1/health", key), names


async def prepare(identity: Identity) -> tuple[str, list[str]]:
    """Make people who log in and an administrator with an API key."""
    hashed = await identity.passwords.hash(PASSWORD)
    names = [f"person-{number}" for number in range(LOGINS)]

    def people(connection: Any) -> str:
        for name in names:
            identity.directory.create(
                connection, OPERATOR, username=name, roles=["viewer"], password_hash=hashed
            )
        return identity.directory.create(
            connection, OPERATOR, username="owner", roles=["admin"], password_hash=hashed
        )

    owner = await identity.database.write(people)
    from uait_server_ext.identity.principal import Principal

    principal = Principal(owner, "owner", permissions=ROLES["admin"])
    request = ApiKeyRequest(name="benchmark", permissions=["system:read"])
    made = await identity.api_keys.create(principal, request)
    return made.key, names


async def compare(bare: Server, ours: Server, rounds: int, size: int) -> tuple[float, float]:
    """Ask both in turns; return the median seconds of each."""
    spent: tuple[list[float], list[float]] = ([], [])
    async with Connection(bare) as first, Connection(ours) as second:
        for connection in (first, second):
            for _ in range(50):
                await connection.ask()
        for _ in range(rounds):
            for connection, times in zip((first, second), spent, strict=True):
                times.extend([await connection.ask() for _ in range(size)])
    return median(spent[0]), median(spent[1])


async def crowd(ours: Server, names: list[str], seconds: float) -> tuple[list[float], int]:
    """Let 64 callers ask while ten people log in; return the callers' times and the logins."""
    times: list[float] = []
    done = 0
    until = time.monotonic() + seconds

    async def caller() -> None:
        async with Connection(ours) as connection:
            while time.monotonic() < until:
                times.append(await connection.ask())
                await asyncio.sleep(0.1)  # a person, or a program that does something with it

    async def person(name: str) -> None:
        nonlocal done
        body = json.dumps({"username": name, "password": PASSWORD}).encode()
        head = (
            f"POST /uait/v1/login HTTP/1.1\r\nHost: 127.0.0.1:{ours.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with Connection(ours) as connection:
            while time.monotonic() < until:
                await connection.send(head.encode() + body, 200)
                done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)), *(person(name) for name in names))
    return times, done


def main() -> None:
    """Measure, print, and judge with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rounds, size, seconds = (10, 50, 5.0) if options.quick else (40, 100, 20.0)
    with tempfile.TemporaryDirectory(prefix="uait-bench-") as folder:
        one, two = Path(folder) / "bare", Path(folder) / "uait"
        one.mkdir()
        two.mkdir()
        with bare_server(one) as bare, uait_server(two) as (ours, names):
            bare_seconds, our_seconds = asyncio.run(compare(bare, ours, rounds, size))
            times, logins = asyncio.run(crowd(ours, names, seconds))
    ratio = our_seconds / bare_seconds
    p95 = quantiles(times, n=20)[-1]
    print(f"bare APIHandler, token      {bare_seconds * 1e3:8.3f} ms (median)")
    print(f"UAIT operation, API key     {our_seconds * 1e3:8.3f} ms (median)")
    print(
        f"{CALLERS} callers, {LOGINS} logins in flight: {len(times)} answers, p50 "
        f"{median(times) * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms; {logins} logins"
    )
    print(f"overhead ratio {ratio:.2f} (limit {MOST_OVERHEAD}), p95 {p95 * 1e3:.0f} ms")
    if options.check and (ratio > MOST_OVERHEAD or p95 > MOST_P95_SECONDS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
