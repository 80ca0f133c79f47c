"""Controls on kernels: one is started on the running server, looked at, and ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir

from uait_server_ext.errors import Unavailable
from uait_server_ext.identity.kernel_environment import looks_secret

from .live import alive, as_administrator
from .report import Control, Judgement, NotApplicable, Subject

PROCESSES = Path("/proc")


async def kernel_has_no_secrets(subject: Subject) -> Judgement:
    """What the server was given does not reach the code that people run."""
    async with probe_kernel(subject) as (process, _):
        if process is None:
            raise NotApplicable("this system has no /proc to ask")
        names = environment_names(process)
    secret = sorted(name for name in names if looks_secret(name))
    return not secret, f"it sees {', '.join(secret)}" if secret else f"{len(names)} variables"


async def kernel_ports_are_encrypted(subject: Subject) -> Judgement:
    """Another user of this machine reads no output and sends no code."""
    async with probe_kernel(subject) as (_, connection):
        encrypted = any("curve" in name for name in connection)
        transport = connection.get("transport")
    return encrypted or transport == "ipc", (
        f"{transport} with CurveZMQ" if encrypted else f"{transport} without encryption"
    )


def memory_is_closed(subject: Subject) -> Judgement:
    """A kernel of the same user reads neither the server's memory nor its environment."""
    server = alive(subject)
    if server.owner() == 0:
        return False, "the server runs as root, from whom nothing is closed"
    # Linux gives the files of a process that refuses dumps to root.
    closed = (PROCESSES / str(server.pid) / "environ").stat().st_uid == 0
    return closed, "closed to its own user" if closed else "open to its own user, so to its kernels"


@asynccontextmanager
async def probe_kernel(subject: Subject) -> AsyncIterator[tuple[Path | None, dict[str, Any]]]:
    """Start a kernel on the server; yield its folder in /proc and its connection file."""
    server = alive(subject)
    scope = {"kernels:read", "kernels:run"}
    async with (
        as_administrator(subject, scope) as token,
        server.client(headers={"Authorization": f"Bearer {token}"}) as client,
    ):
        started = await client.post("api/kernels", json={})
        if started.status_code == HTTPStatus.NOT_FOUND:
            raise NotApplicable("this server has no kernels")
        if started.status_code != HTTPStatus.CREATED:
            raise Unavailable(f"POST api/kernels answers {started.status_code}")
        kernel = started.json()["id"]
        try:
            file = Path(jupyter_runtime_dir()) / f"kernel-{kernel}.json"
            yield process_of(file.name), json.loads(file.read_text("utf-8"))
        finally:
            await client.delete(f"api/kernels/{kernel}")


def process_of(connection_file: str) -> Path | None:
    """Return the folder in /proc of the process that was given a connection file.

    None where there is no /proc.

    Raises:
        Unavailable: there is none.
    """
    if not PROCESSES.is_dir():
        return None
    for process in PROCESSES.glob("[0-9]*"):
        try:
            if connection_file.encode() in (process / "cmdline").read_bytes():
                return process
        except OSError:
            continue
    raise Unavailable("the kernel's process was not found")


def environment_names(process: Path) -> list[str]:
    """Return the names of a process's environment variables."""
    content = (process / "environ").read_bytes().decode("utf-8", "replace")
    return [entry.partition("=")[0] for entry in content.split("\0") if "=" in entry]


CONTROLS = (
    Control("kernel-environment", "a kernel was started and looked at", kernel_has_no_secrets),
    Control("kernel-transport", "the same kernel's connection file", kernel_ports_are_encrypted),
    Control("memory", "owner of the server's files in /proc", memory_is_closed),
)
