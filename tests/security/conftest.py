"""A real server with UAIT's login (`uait lab`), people of every role, and clients of every kind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.services import Foundation, Settings, open_foundation

START_SECONDS = 180.0
PASSWORD = "correct horse battery staple"


@dataclass
class Person:
    """An account with what its owner knows."""

    id: str
    username: str
    password: str = field(repr=False)


class Api:
    """One caller of the server: a browser with cookies, or a program with a header."""

    def __init__(self, server: IdentityServer, headers: dict[str, str] | None = None) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, headers=headers, timeout=30, trust_env=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send to a path of the server; `~` stands for `uait/v1`."""
        if path.startswith("~"):
            path = f"uait/v1{path[1:]}"
        headers = dict(options.pop("headers", None) or {})
        if method not in ("GET", "HEAD") and "_xsrf" in self.http.cookies:
            headers.setdefault("X-XSRFToken", self.http.cookies["_xsrf"])
        return self.http.request(method, path.lstrip("/"), headers=headers, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.request("POST", path, **({} if body is None else {"json": body}), **options)

    def patch(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.request("PATCH", path, json=body, **options)

    def put(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.request("PUT", path, json=body, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", path, **options)

    def close(self) -> None:
        self.http.close()


@dataclass
class IdentityServer:
    """A running server and the state that it shares with this process."""

    url: str
    pid: int
    process: subprocess.Popen[bytes]
    state: Path
    log: Path
    foundation: Foundation
    setup_secret: str | None = field(default=None, repr=False)
    clients: list[Api] = field(default_factory=list)

    @property
    def identity(self) -> Any:
        """Return an identity on the same database, as the CLI has one."""
        from uait_server_ext.identity.service import IdentitySettings
        from uait_server_ext.services import open_identity

        return open_identity(IdentitySettings(), self.foundation)

    def browser(self) -> Api:
        """Return a browser that nobody has logged in with."""
        client = Api(self)
        client.get("login")  # as a browser would: the page sets the XSRF cookie
        self.clients.append(client)
        return client

    def program(self, token: str) -> Api:
        """Return a program that sends a token or API key."""
        client = Api(self, {"Authorization": f"Bearer {token}"})
        self.clients.append(client)
        return client

    def anonymous(self) -> Api:
        """Return a caller with nothing: no cookie, no header."""
        client = Api(self)
        self.clients.append(client)
        return client

    def login(self, person: Person) -> Api:
        """Return a browser in which a person has logged in with their password."""
        client = self.browser()
        answer = client.post("~/login", {"username": person.username, "password": person.password})
        assert answer.status_code == 200, answer.text
        return client

    def logged(self) -> str:
        """Return the server's log up to now."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def identity_server(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[IdentityServer]:
    """Run `uait lab` on a free loopback port over a folder of its own."""
    from jupyter_core.paths import jupyter_runtime_dir

    state, root, log = folder / "state", folder / "root", folder / "server.log"
    root.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "uait_server_ext",
        "lab",
        "--no-browser",
        "--port=0",
        "--ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        f"--UaitApp.data_dir={state}",
        *(["--allow-root"] if os.geteuid() == 0 else []),
        *arguments,
    ]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        runtime = Path(jupyter_runtime_dir()) / f"jpserver-{process.pid}.json"
        url = wait_for(runtime, process, log)
        foundation = open_foundation(Settings(data_dir=state, model_cache=state, root_dir=root))
        server = IdentityServer(url, process.pid, process, state, log, foundation)
        found = [line for line in server.logged().splitlines() if "#secret=" in line]
        if found:
            server.setup_secret = found[-1].rpartition("#secret=")[2].strip()
        try:
            yield server
        finally:
            for client in server.clients:
                client.close()
            foundation.close()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(runtime: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the server's address when it answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            info = json.loads(runtime.read_text(encoding="utf-8"))
            url = f"http://127.0.0.1:{info['port']}{info['base_url']}"
            if httpx.get(f"{url}uait/v1/health/live", trust_env=False).status_code == 200:
                return url
        except (OSError, ValueError, httpx.HTTPError):
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not start:\n" + log.read_text(errors="replace")[-4000:])


@pytest.fixture(scope="session")
def server(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run one server for all tests that leave it as they found it."""
    # A test suite logs in more often than an office does; what is slow on purpose has tests of
    # its own.
    limits = "--UaitApp.rate_limits={'login': {'user': 1000, 'key': 1000, 'ip': 10000}}"
    with identity_server(tmp_path_factory.mktemp("identity"), limits) as running:
        yield running


@pytest.fixture(scope="session")
def make_user(server: IdentityServer) -> Callable[..., Person]:
    """Return a function that makes an account with a role, straight in the database."""
    return user_maker(server)


def user_maker(server: IdentityServer) -> Callable[..., Person]:
    """Return a function that makes accounts on a server."""
    identity = server.identity
    made: list[int] = []

    def make(*roles: str, username: str | None = None, password: str = PASSWORD) -> Person:
        made.append(1)
        name = username or f"{(roles or ('nobody',))[0]}-{len(made)}"

        hashed = asyncio.run(identity.passwords.hash(password))
        user_id = server.foundation.database.write_now(
            lambda connection: identity.directory.create(
                connection, OPERATOR, username=name, roles=roles, password_hash=hashed
            )
        )
        return Person(user_id, name, password)

    return make


@pytest.fixture(scope="session")
def people(make_user: Callable[..., Person]) -> dict[str, Person]:
    """Return one person of each role."""
    return {role: make_user(role) for role in ("viewer", "analyst", "developer", "admin")}


@pytest.fixture
def login(server: IdentityServer) -> Callable[[Person], Api]:
    """Return a function that logs a person in with a browser."""
    return server.login
