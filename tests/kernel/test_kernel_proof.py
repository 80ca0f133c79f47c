"""A kernel's proof as its server sees it, the token that comes back, and its place in discovery."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import KernelManager

import uait_kernel
from uait_kernel.discovery import find_server, server_at
from uait_kernel.endpoint import Server, parse_address
from uait_kernel.errors import (
    NoAnswer,
    PermissionDenied,
    ServerNotFound,
    Unauthenticated,
    UnexpectedAnswer,
)
from uait_kernel.kernel_proof import KernelToken, exchange_with, own_kernel
from uait_kernel.session import Session
from uait_kernel.transport import Transport

if TYPE_CHECKING:
    from tests.kernel.conftest import ProtocolServer

Start = Callable[..., "ProtocolServer"]
Write = Callable[..., Path]

KEY = b"0123456789abcdef-0123456789abcdef"
KERNEL = "8b9a4f0e-56a1-4c1e-9d1c-0123456789ab"


class Door:
    """UAIT's own login in front of the protocol server: it takes the proofs of one kernel."""

    def __init__(self, server: ProtocolServer, key: bytes = KEY) -> None:
        self.server, self.key = server, key
        self.proofs: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.seconds: float = 300
        self.status = 200
        original = server._authorise

        def authorise(handler: Any, operation: str) -> None:
            proven = self.tokens and handler.headers["Authorization"] == f"Bearer {self.tokens[-1]}"
            if operation != "kernel-token" and not proven:
                original(handler, operation)

        server.token = "nobody-knows-this"
        server._authorise = authorise  # type: ignore[method-assign]
        server.faults["kernel-token"] = self.answer

    def answer(self, handler: Any) -> None:
        """Answer a proof as the server does."""
        proof = self.server.requests[-1][2] or {}
        self.proofs.append(proof)
        text = "|".join(
            ("uait-kernel-token/1", proof["kernel_id"], str(proof["timestamp"]), proof["nonce"])
        )
        message = f"{text}|{self.server.url}".encode()
        valid = hmac.compare_digest(
            hmac.new(self.key, message, hashlib.sha256).hexdigest(), proof["mac"]
        )
        status = self.status if valid else 403
        if status != 200:
            code = {403: "permission-denied", 503: "unavailable", 429: "busy"}[status]
            problem = {"status": status, "code": code, "detail": "Not this one."}
            handler.send(status, "application/problem+json", json.dumps(problem).encode())
            return
        self.tokens.append(f"token-of-the-kernel-{len(self.tokens)}")
        answer = {
            "access_token": self.tokens[-1],
            "token_type": "Bearer",
            "expires_in": self.seconds,
            "scope": "models:run",
        }
        handler.send(200, "application/json", json.dumps(answer).encode())


@pytest.fixture
def door(protocol_server: ProtocolServer) -> Door:
    """Put UAIT's own login before the protocol server."""
    return Door(protocol_server)


@pytest.fixture
def in_kernel(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look like a kernel's."""
    app = SimpleNamespace(
        connection_file=f"/run/jupyter/kernel-{KERNEL}.json", session=SimpleNamespace(key=KEY)
    )
    kernelapp = SimpleNamespace(
        IPKernelApp=SimpleNamespace(initialized=lambda: True, instance=lambda: app)
    )
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernelapp)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getpid()))


@pytest.fixture
def parent(door: Door, in_kernel: None, write_runtime_file: Write) -> Door:
    """Make that server the parent of this kernel; its runtime file holds no token."""
    write_runtime_file(door.server, token="")
    return door


def parents(pid: int | None = None) -> dict[str, str]:
    return {"JPY_PARENT_PID": str(pid or os.getpid())}


class FakeClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_script_is_no_kernel() -> None:
    assert own_kernel() is None


def test_a_kernel_knows_its_id_and_key_and_shows_neither_key_nor_token(in_kernel: None) -> None:
    kernel = own_kernel()
    assert kernel is not None
    assert (kernel.id, kernel.key) == (KERNEL, KEY)
    assert KEY.decode() not in repr(kernel)
    token = KernelToken(lambda: ("s3cret", 300))
    token.headers()
    assert "s3cret" not in f"{token} {token!r} {token._exchange!r}"
    for store in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            store(token)


def test_the_proof_opens_the_server_of_this_kernel(parent: Door, runtime_dir: Path) -> None:
    server = find_server(parents(), runtime_dir)
    assert server.url == parent.server.url
    assert server.token.headers() == {"Authorization": "Bearer token-of-the-kernel-0"}
    assert Transport(server).call("GET", "models")["models"]
    (proof,) = parent.proofs
    assert proof["kernel_id"] == KERNEL
    assert abs(proof["timestamp"] - time.time()) < 5
    assert KEY.decode() not in json.dumps(proof)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_proof_also_opens_it_where_it_is_named_without_a_token(
    parent: Door, runtime_dir: Path, name: str
) -> None:
    url = parent.server.url.replace("127.0.0.1", name)
    server = server_at(url, None, "given to connect", runtime_dir)
    assert server.token.headers()["Authorization"].startswith("Bearer token-of-the-kernel")
    assert server_at(url, "mine", "given to connect").token.headers() == {
        "Authorization": "token mine"
    }


def test_no_other_server_is_shown_a_proof(
    parent: Door, start_protocol_server: Start, write_runtime_file: Write, runtime_dir: Path
) -> None:
    other = start_protocol_server(token="")
    write_runtime_file(other, pid=os.getppid())
    assert not server_at(other.url, None, "given to connect", runtime_dir).token
    assert not server_at("http://127.0.0.1:9/", None, "given to connect", runtime_dir).token
    assert not [path for _, path, _ in other.requests if path == "kernel-token"]


def test_a_parent_without_uait_is_shown_no_proof(parent: Door, runtime_dir: Path) -> None:
    parent.server.faults["live"] = lambda handler: handler.send(404, "text/html", b"?")
    with pytest.raises(ServerNotFound, match="is without UAIT"):
        find_server(parents(), runtime_dir)
    assert parent.proofs == []


def test_a_refused_proof_is_told_with_the_servers_reason(parent: Door, runtime_dir: Path) -> None:
    parent.key = b"another kernel's key"
    with pytest.raises(ServerNotFound, match=r"gives this kernel no token: Not this one\."):
        find_server(parents(), runtime_dir)


def test_under_jupyters_own_login_everything_is_as_it_was(
    parent: Door, write_runtime_file: Write, runtime_dir: Path
) -> None:
    parent.status = 503
    assert not find_server(parents(), runtime_dir).token
    write_runtime_file(parent.server, token="", password=True)
    with pytest.raises(ServerNotFound, match="password login only"):
        find_server(parents(), runtime_dir)
    write_runtime_file(parent.server, token="abc")
    found = find_server(parents(), runtime_dir)
    assert found.token.headers() == {"Authorization": "token abc"}


def test_a_server_that_is_too_busy_now_is_asked_again_by_the_request(
    parent: Door, runtime_dir: Path
) -> None:
    parent.status = 429
    server = find_server(parents(), runtime_dir)
    parent.status = 200
    assert Transport(server).call("GET", "models")["models"]


def test_a_token_is_renewed_a_minute_before_it_ends() -> None:
    clock, made = FakeClock(), iter(f"t{number}" for number in range(9))
    token = KernelToken(lambda: (next(made), 300), clock)
    assert token.headers() == {"Authorization": "Bearer t0"}
    clock.now += 239
    assert token.headers() == {"Authorization": "Bearer t0"}
    clock.now += 1
    assert token.headers() == {"Authorization": "Bearer t1"}


def test_a_token_that_the_server_no_longer_takes_is_replaced_once(
    parent: Door, runtime_dir: Path
) -> None:
    transport = Transport(find_server(parents(), runtime_dir))
    parent.tokens.append("the owner's account has changed")
    assert transport.call("GET", "models")["models"]
    assert len(parent.proofs) == 2
    parent.server.faults["models"] = lambda handler: handler.send(
        401, "application/problem+json", b'{"status": 401, "code": "unauthenticated"}'
    )
    with pytest.raises(Unauthenticated):
        transport.call("GET", "models")
    assert len(parent.proofs) == 3


def test_many_threads_make_one_proof(parent: Door, runtime_dir: Path) -> None:
    kernel = own_kernel()
    assert kernel is not None
    token = KernelToken(exchange_with(parse_address(parent.server.url)[0], kernel))
    threads = [threading.Thread(target=token.headers) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(parent.proofs) == 1


def test_every_proof_is_another(parent: Door) -> None:
    kernel = own_kernel()
    assert kernel is not None
    exchange = exchange_with(parse_address(parent.server.url)[0], kernel)
    assert exchange()[0] != exchange()[0]
    first, second = parent.proofs
    assert first["nonce"] != second["nonce"]
    assert first["mac"] != second["mac"]


def test_an_answer_without_a_token_is_none(parent: Door) -> None:
    parent.server.faults["kernel-token"] = lambda handler: handler.send(
        200, "application/json", b'{"access_token": 7, "expires_in": "x"}'
    )
    kernel = own_kernel()
    assert kernel is not None
    with pytest.raises(UnexpectedAnswer):
        exchange_with(parse_address(parent.server.url)[0], kernel)()


def test_nothing_of_it_is_in_an_error(parent: Door, runtime_dir: Path) -> None:
    found: Server = find_server(parents(), runtime_dir)
    parent.server.stop()
    session = Session(lambda: found)
    with pytest.raises(NoAnswer) as caught, session.client() as client:
        client.models()
    shown = f"{caught.value} {found!r} {client!r}"
    assert parent.tokens[0] not in shown
    assert KEY.decode() not in shown


def test_a_permission_that_kernels_lack_is_no_reason_for_a_new_proof(
    parent: Door, runtime_dir: Path
) -> None:
    parent.server.faults["models"] = lambda handler: handler.send(
        403, "application/problem+json", b'{"status": 403, "code": "permission-denied"}'
    )
    transport = Transport(find_server(parents(), runtime_dir))
    with pytest.raises(PermissionDenied):
        transport.call("GET", "models")
    assert len(parent.proofs) == 1


@pytest.fixture
def real_kernel(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KernelManager]:
    """Run a real ipykernel whose connection file is named as Jupyter Server names it."""
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(root), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager = KernelManager(
        kernel_name="python3",
        connection_file=str(runtime_dir / f"kernel-{KERNEL}.json"),
        transport_encryption="required",
    )
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


@pytest.mark.slow
def test_a_real_kernel_proves_itself(
    door: Door, write_runtime_file: Write, real_kernel: KernelManager
) -> None:
    write_runtime_file(door.server, token="")  # of this process: the kernel's parent
    door.key = real_kernel.session.key
    client = real_kernel.blocking_client()
    client.start_channels()
    messages: list[dict[str, Any]] = []
    try:
        client.wait_for_ready(timeout=60)
        code = "import uait_kernel\nprint(len(uait_kernel.models()))"
        client.execute_interactive(code, timeout=60, output_hook=messages.append)
    finally:
        client.stop_channels()
    said = [message["content"] for message in messages if "text" in message["content"]]
    assert [content["text"] for content in said] == ["2\n"], messages
    (proof,) = door.proofs
    assert proof["kernel_id"] == KERNEL
    assert uait_kernel.__all__
