"""Stored logins: found by server, private, renewed once however many processes need them."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from uait_kernel.credentials import CredentialFile, Login, StoredToken, stored_token
from uait_kernel.discovery import find_server, server_at
from uait_kernel.endpoint import Endpoint, parse_address
from uait_kernel.errors import NoAnswer, Unauthenticated, UnexpectedAnswer, UsageMistake


class TokenServer:
    """Gives tokens as the server does: a refresh token counts once, a second use ends the login."""

    def __init__(self, lifetime: float = 600) -> None:
        self.lifetime = lifetime
        self.newest = "refresh-0"
        self.uses: list[str] = []
        self.dead = False
        self.fault: dict[str, Any] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = outer.answer(body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Stay quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.endpoint, _ = parse_address(f"http://127.0.0.1:{self._http.server_port}/")
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            if self.fault is not None:
                return 200, self.fault
            self.uses.append(body["refresh_token"])
            if self.dead or body["refresh_token"] != self.newest:
                self.dead = True
                return 401, {"status": 401, "code": "unauthenticated", "detail": "Ended."}
            self.newest = f"refresh-{len(self.uses)}"
            return 200, {
                "access_token": f"access-{len(self.uses)}",
                "refresh_token": self.newest,
                "expires_in": self.lifetime,
                "scope": "models:run",
            }

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[TokenServer]:
    running = TokenServer()
    yield running
    running.stop()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_dir: Path) -> CredentialFile:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    return CredentialFile()


def keep(file: CredentialFile, endpoint: Endpoint, *, ends_in: float = -1.0) -> None:
    with file.locked():
        file.put(endpoint, Login("refresh-0", "access-0", time.time() + ends_in, "models:run"))


def header(token: Any) -> str:
    return str(token.headers()["Authorization"])


def test_a_login_is_private_and_found_by_its_server(file: CredentialFile) -> None:
    here, _ = parse_address("http://localhost:8888/base/")
    other, _ = parse_address("https://uait.example.org/")
    keep(file, here, ends_in=600)
    keep(file, other, ends_in=600)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    same, _ = parse_address("http://127.0.0.1:8888/base/lab")
    found = stored_token(same)
    assert found
    assert header(found) == "Bearer access-0"
    assert "access-0" not in repr(found)
    assert "refresh-0" not in repr(file.find(here))
    for stranger in ("http://localhost:8889/base/", "https://localhost:8888/base/"):
        assert stored_token(parse_address(stranger)[0]) is None
    with file.locked():
        file.drop(here)
    assert stored_token(here) is None
    assert stored_token(other)


def test_without_a_file_there_is_no_login(file: CredentialFile, server: TokenServer) -> None:
    assert stored_token(server.endpoint) is None
    assert not file.path.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_file_that_others_can_read_is_refused(
    file: CredentialFile, server: TokenServer, mode: int
) -> None:
    keep(file, server.endpoint)
    file.path.chmod(mode)
    with pytest.raises(UsageMistake, match="open to others"):
        stored_token(server.endpoint)
    assert server.uses == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"http://a/": 1}', '{"http://a/": {"b": 1}}'])
def test_a_damaged_file_is_reported(file: CredentialFile, content: str) -> None:
    with file.locked():
        file.path.touch(mode=0o600)
    file.path.write_text(content)
    with pytest.raises(UsageMistake, match="cannot be read"):
        file.logins()


def test_a_token_is_renewed_when_it_is_due_and_kept(
    file: CredentialFile, server: TokenServer
) -> None:
    keep(file, server.endpoint)
    token = StoredToken(server.endpoint, file)
    assert header(token) == header(token) == "Bearer access-1"
    assert header(StoredToken(server.endpoint, file)) == "Bearer access-1"
    assert server.uses == ["refresh-0"]
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in file.path.parent.iterdir() if "json." in one.name] == []


def test_a_refused_token_is_renewed_once(file: CredentialFile, server: TokenServer) -> None:
    keep(file, server.endpoint, ends_in=600)
    token = StoredToken(server.endpoint, file)
    assert header(token) == "Bearer access-0"
    assert token.refused()
    assert header(token) == "Bearer access-1"
    assert server.uses == ["refresh-0"]


def test_an_ended_login_is_forgotten_and_says_what_to_do(
    file: CredentialFile, server: TokenServer
) -> None:
    keep(file, server.endpoint)
    server.dead = True
    token = StoredToken(server.endpoint, file)
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="uait login --url"):
            token.headers()
    assert len(server.uses) == 1
    assert file.logins() == {}


def test_a_server_that_is_away_costs_no_login(file: CredentialFile, server: TokenServer) -> None:
    keep(file, server.endpoint)
    server.stop()
    with pytest.raises(NoAnswer):
        StoredToken(server.endpoint, file).headers()
    assert file.find(server.endpoint)


@pytest.mark.parametrize(
    "fault", [{}, {"access_token": 1}, {"access_token": "a b", "refresh_token": "c"}]
)
def test_an_answer_without_tokens_is_not_kept(
    file: CredentialFile, server: TokenServer, fault: dict[str, Any]
) -> None:
    keep(file, server.endpoint)
    server.fault = fault
    with pytest.raises(UnexpectedAnswer):
        StoredToken(server.endpoint, file).headers()
    kept = file.find(server.endpoint)
    assert kept
    assert kept.refresh_token == "refresh-0"


def renew(url: str, path: str, answers: Any) -> None:
    endpoint, _ = parse_address(url)
    answers.put(header(StoredToken(endpoint, CredentialFile(Path(path)))))


def test_processes_and_threads_that_renew_together_use_a_token_once(
    file: CredentialFile, server: TokenServer
) -> None:
    keep(file, server.endpoint)
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    arguments = (server.endpoint.url, str(file.path), answers)
    workers: list[Any] = [context.Process(target=renew, args=arguments) for _ in range(3)]
    workers += [threading.Thread(target=renew, args=arguments) for _ in range(8)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == ["Bearer access-1"] * len(workers)
    assert server.uses == ["refresh-0"]


def test_a_stored_login_opens_the_server_that_is_named(
    file: CredentialFile, server: TokenServer
) -> None:
    keep(file, server.endpoint, ends_in=600)
    found = find_server({"UAIT_URL": server.endpoint.url})
    assert header(found.token) == "Bearer access-0"
    given = server_at(server.endpoint.url, "another", "test")
    assert header(given.token) == "token another"
