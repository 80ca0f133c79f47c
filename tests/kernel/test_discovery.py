"""Which server a kernel uses: the order, and what is said when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import uait_kernel
from uait_kernel.discovery import find_server
from uait_kernel.endpoint import Server
from uait_kernel.errors import NoAnswer, ServerNotFound, Unauthenticated, UsageMistake
from uait_kernel.runtime_files import is_alive
from uait_kernel.session import Session

if TYPE_CHECKING:
    from tests.kernel.conftest import ProtocolServer

Start = Callable[..., "ProtocolServer"]
Write = Callable[..., Path]


def token_of(server: Server) -> str:
    return server.token.headers().get("Authorization", "").removeprefix("token ")


@pytest.fixture
def dead_pid() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def other_pid() -> int:
    """Return the id of a living process other than this one."""
    return os.getppid()


def test_the_order(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write, other_pid: int
) -> None:
    named, parent, hub, newest = (start_protocol_server(token=f"token-{n}") for n in range(4))
    parent_file = write_runtime_file(parent, pid=other_pid)
    write_runtime_file(newest)
    os.utime(parent_file, (1, 1))
    variables = {
        "UAIT_URL": named.url,
        "UAIT_TOKEN": named.token,
        "JPY_PARENT_PID": str(other_pid),
        "JUPYTERHUB_SERVICE_URL": hub.url,
        "JUPYTERHUB_API_TOKEN": hub.token,
    }

    def found() -> tuple[str, str]:
        server = find_server(variables, runtime_dir)
        return server.url, token_of(server)

    assert found() == (named.url, "token-0")
    del variables["UAIT_URL"]
    assert found() == (parent.url, "token-1")
    del variables["JPY_PARENT_PID"]
    assert found() == (hub.url, "token-2")
    del variables["JUPYTERHUB_API_TOKEN"]
    assert found() == (newest.url, "token-3")


def test_a_named_server_without_a_token_takes_that_of_its_own_runtime_file(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write, other_pid: int
) -> None:
    one, two = start_protocol_server(token="one"), start_protocol_server(token="two", base="/b/")
    write_runtime_file(one)
    write_runtime_file(two, pid=other_pid)
    url = two.url.replace("127.0.0.1", "localhost").rstrip("/")
    assert token_of(find_server({"UAIT_URL": url}, runtime_dir)) == "two"
    assert token_of(find_server({"UAIT_URL": f"{url}?token=linked"}, runtime_dir)) == "linked"
    elsewhere = two.url.replace("/b/", "/c/")
    assert token_of(find_server({"UAIT_URL": elsewhere}, runtime_dir)) == ""


def test_the_token_of_this_machine_goes_to_no_other_host(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    server = start_protocol_server()
    write_runtime_file(server)
    foreign = server.url.replace("127.0.0.1", "uait.example")
    assert token_of(find_server({"UAIT_URL": foreign}, runtime_dir)) == ""


def test_a_parent_without_uait_is_passed_over(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write, other_pid: int
) -> None:
    plain, uait = start_protocol_server(), start_protocol_server()
    plain.faults["live"] = lambda handler: handler.send(404, "text/html", b"?")
    write_runtime_file(plain, pid=other_pid)
    write_runtime_file(uait)
    assert find_server({"JPY_PARENT_PID": str(other_pid)}, runtime_dir).url == uait.url


def test_a_parent_that_cannot_answer_now_is_still_the_one(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    parent = start_protocol_server()
    write_runtime_file(parent)
    parent.faults["live"] = lambda handler: handler.connection.close()
    assert find_server({"JPY_PARENT_PID": str(os.getpid())}, runtime_dir).url == parent.url


def test_dead_silent_and_foreign_servers_are_passed_over(
    runtime_dir: Path,
    start_protocol_server: Start,
    write_runtime_file: Write,
    other_pid: int,
    dead_pid: int,
) -> None:
    good, stale = start_protocol_server(), start_protocol_server()
    write_runtime_file(good, pid=other_pid)
    write_runtime_file(stale, pid=dead_pid)
    write_runtime_file(url="http://127.0.0.1:9/", token="t")
    (runtime_dir / "jpserver-1x.json").write_text("{half")
    (runtime_dir / "jpserver-2x.json").write_text("[]")
    (runtime_dir / "jpserver-3x.json").write_text('{"url": "http+unix://%2Fx", "pid": 1}')
    (runtime_dir / "jpserver-4x.json").mkdir()
    assert find_server({}, runtime_dir).url == good.url
    assert not stale.requests


def test_the_probe_carries_no_token(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    server = start_protocol_server()
    headers: list[str | None] = []

    def record(handler: object) -> None:
        headers.append(handler.headers.get("Authorization"))  # type: ignore[attr-defined]
        handler.send(200, "application/json", b'{"live": true}')  # type: ignore[attr-defined]

    server.faults["live"] = record
    write_runtime_file(server)
    find_server({}, runtime_dir)
    assert headers == [None]


@pytest.mark.parametrize("url", ["http://0.0.0.0:{port}/", "http://127.0.0.1:{port}"])
def test_hub_addresses_as_the_hub_writes_them(
    runtime_dir: Path, start_protocol_server: Start, url: str
) -> None:
    server = start_protocol_server(token="hub")
    found = find_server(
        {
            "JUPYTERHUB_SERVICE_URL": url.format(port=server.port),
            "JUPYTERHUB_API_TOKEN": "hub",
        },
        runtime_dir,
    )
    assert (found.url, token_of(found)) == (server.url, "hub")


def test_with_nothing_the_error_says_in_one_line_what_was_tried(runtime_dir: Path) -> None:
    with pytest.raises(ServerNotFound) as caught:
        find_server({}, runtime_dir)
    assert str(caught.value) == (
        "No UAIT server found: UAIT_URL is not set; this kernel was started by no Jupyter server; "
        "no JupyterHub; no Jupyter server runs on this machine. "
        "Start one with `uait lab`, or set UAIT_URL and UAIT_TOKEN."
    )
    assert caught.value._render_traceback_() == [f"ServerNotFound: {caught.value}"]


def test_the_error_names_servers_that_will_not_do(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    locked = start_protocol_server(token="")
    write_runtime_file(locked, password=True)
    variables = {
        "JPY_PARENT_PID": str(os.getpid()),
        "JUPYTERHUB_SERVICE_URL": "nowhere",
        "JUPYTERHUB_API_TOKEN": "t",
    }
    with pytest.raises(ServerNotFound) as caught:
        find_server(variables, runtime_dir)
    message = str(caught.value)
    assert f"{locked.url} (the server of this kernel) has a password login only" in message
    assert "JUPYTERHUB_SERVICE_URL is no address" in message
    assert "of the Jupyter servers on this machine (1) none answers as UAIT" in message


def test_a_server_without_authentication_needs_no_token(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    server = start_protocol_server(token="")
    write_runtime_file(server)
    assert find_server({}, runtime_dir).url == server.url


@pytest.mark.parametrize(
    "variables",
    [{"UAIT_URL": "127.0.0.1:8888"}, {"UAIT_URL": "http://host/", "UAIT_TOKEN": "s3cret x"}],
)
def test_variables_that_cannot_be_used_are_named_and_not_repeated(
    runtime_dir: Path, variables: dict[str, str]
) -> None:
    with pytest.raises(UsageMistake, match="UAIT_URL or UAIT_TOKEN cannot be used") as caught:
        find_server(variables, runtime_dir)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown


def test_no_token_is_in_any_error(
    runtime_dir: Path, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    server = start_protocol_server(token="s3cret")
    write_runtime_file(server)
    found = find_server({}, runtime_dir)
    server.stop()
    session = Session(lambda: found)
    with pytest.raises(NoAnswer) as caught, session.client() as client:
        client.health()
    shown = "".join(traceback.format_exception(caught.value)) + repr(found) + repr(client)
    assert "s3cret" not in shown


def test_liveness_of_processes(dead_pid: int, other_pid: int) -> None:
    assert is_alive(os.getpid())
    assert is_alive(other_pid)
    assert is_alive(1)
    assert not is_alive(dead_pid)


def test_a_runtime_file_as_jupyter_server_writes_it_is_read(
    runtime_dir: Path, start_protocol_server: Start
) -> None:
    server = start_protocol_server(token="abc", base="/user/x/")
    info = {
        "base_url": "/user/x/",
        "hostname": "localhost",
        "password": False,
        "pid": os.getpid(),
        "port": server.port,
        "root_dir": "/home/x",
        "secure": False,
        "sock": "",
        "token": "abc",
        "url": f"http://localhost:{server.port}/user/x/",
        "version": "2.21.1",
    }
    (runtime_dir / f"jpserver-{os.getpid()}.json").write_text(json.dumps(info))
    assert token_of(find_server({}, runtime_dir)) == "abc"


def test_a_session_searches_once_and_again_after_a_failure(
    start_protocol_server: Start, runtime_dir: Path, write_runtime_file: Write
) -> None:
    first = start_protocol_server()
    write_runtime_file(first)
    session = Session()
    for _ in range(3):
        with session.client() as client:
            client.models()
    assert [path for _, path, _ in first.requests].count("health/live") == 1
    first.stop()
    with pytest.raises(NoAnswer), session.client() as client:
        client.models()
    second = start_protocol_server(token="new")
    write_runtime_file(second)
    with session.client() as client:
        assert client.url == second.url
        assert len(client.models()) == 2


def test_a_new_token_after_a_restart_is_found(
    start_protocol_server: Start, runtime_dir: Path, write_runtime_file: Write
) -> None:
    server = start_protocol_server(token="old")
    write_runtime_file(server)
    session = Session()
    with session.client() as client:
        client.models()
    server.token = "new"
    write_runtime_file(server)
    with pytest.raises(Unauthenticated), session.client() as client:
        client.models()
    with session.client() as client:
        assert len(client.models()) == 2


def test_variables_set_in_a_running_kernel_take_effect(
    start_protocol_server: Start,
    runtime_dir: Path,
    write_runtime_file: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, named = start_protocol_server(), start_protocol_server(token="t2")
    write_runtime_file(found)
    session = Session()
    with session.client() as client:
        assert client.url == found.url
    monkeypatch.setenv("UAIT_URL", named.url)
    monkeypatch.setenv("UAIT_TOKEN", "t2")
    with session.client() as client:
        assert client.url == named.url


def test_connect_comes_before_everything(
    connected: ProtocolServer, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    given = start_protocol_server(token="given")
    client = uait_kernel.connect(given.url, "given")
    assert repr(client) == f"<UAIT client of {given.url} (given to connect)>"
    uait_kernel.models()
    assert ("GET", "models", None) in given.requests
    assert not connected.requests
    uait_kernel.connect()
    uait_kernel.models()
    assert ("GET", "models", None) in connected.requests


def test_connect_takes_a_link_or_the_runtime_file_of_the_address(
    fresh_session: None, start_protocol_server: Start, write_runtime_file: Write
) -> None:
    server = start_protocol_server()
    assert uait_kernel.connect(f"{server.url}lab?token={server.token}").health()["ready"]
    write_runtime_file(server)
    assert uait_kernel.connect(server.url).health()["ready"]


def test_a_connect_that_fails_changes_nothing(
    connected: ProtocolServer, start_protocol_server: Start
) -> None:
    other = start_protocol_server(token="other")
    with pytest.raises(Unauthenticated):
        uait_kernel.connect(other.url, "wrong")
    with pytest.raises(UsageMistake, match="A token alone says no server"):
        uait_kernel.connect(token="x")
    uait_kernel.models()
    assert ("GET", "models", None) in connected.requests
