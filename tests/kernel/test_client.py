"""The HTTP client against a real socket: what goes over it, and how answers go wrong."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uait_kernel import errors, event_stream, transport
from uait_kernel.client import Client

if TYPE_CHECKING:
    from tests.kernel.conftest import Handler, ProtocolServer

PROMPT = [{"role": "user", "content": "one two three four"}]


@pytest.fixture
def client(protocol_server: ProtocolServer) -> Client:
    return Client(protocol_server.url, protocol_server.token)


def test_each_operation_goes_to_its_path(client: Client, protocol_server: ProtocolServer) -> None:
    assert client.health()["ready"] is True
    assert [model.id for model in client.models()] == ["echo", "minilm"]
    assert [status.name for status in client.collections()] == ["default"]
    assert client.status().failed[0].error == "The PDF has no text."
    hits = client.search("install it", k=2, mode="text")
    assert [hit.place.label for hit in hits] == ["lines 1-1", "lines 1-2"]
    client.delete("default")
    assert protocol_server.requests == [
        ("GET", "health", None),
        ("GET", "models", None),
        ("GET", "collections", None),
        ("GET", "collections/default", None),
        (
            "POST",
            "collections/default/search",
            {"query": "install it", "k": 2, "mode": "text"},
        ),
        ("DELETE", "collections/default", None),
    ]


def test_options_that_are_not_given_are_left_to_the_server(
    client: Client, protocol_server: ProtocolServer
) -> None:
    with client.ask("how?") as events:
        list(events)
    with client.ask("how?", k=3, phrase=False, model="echo", max_tokens=9) as events:
        list(events)
    assert protocol_server.bodies("ask") == [
        {"question": "how?"},
        {"question": "how?", "k": 3, "phrase": False, "model": "echo", "max_tokens": 9},
    ]


def test_events_come_with_their_type_and_end_with_done(client: Client) -> None:
    with client.ask("how is it installed?") as events:
        kinds = [event["type"] for event in events]
    assert kinds == ["evidence", *["delta"] * 5, "done"]
    with client.chat(PROMPT) as events:
        texts = [event["text"] for event in events]
    assert texts == ["one ", "two ", "three ", "four", "one two three four"]


def test_closing_a_stream_cancels_it(
    client: Client,
    protocol_server: ProtocolServer,
    within: Callable[[threading.Event], None],
) -> None:
    protocol_server.pause = threading.Event()
    with client.chat(PROMPT) as events:
        assert next(iter(events))["text"] == "one "
    within(protocol_server.cancelled)


def test_a_server_under_a_base_url(start_protocol_server: Callable[..., ProtocolServer]) -> None:
    server = start_protocol_server(base="/user/ann/")
    assert Client(server.url, server.token).status("default").documents == 1
    assert Client(f"{server.url}lab?token={server.token}").health()["live"] is True


def test_environment_proxies_are_not_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert client.health()["live"] is True


def test_the_token_is_nowhere_to_be_seen(client: Client, protocol_server: ProtocolServer) -> None:
    protocol_server.token = "changed"
    with pytest.raises(errors.Unauthenticated) as caught:
        client.health()
    shown = f"{client!r} {caught.value} {vars(caught.value)} {vars(client._http.server)}"
    assert "s3cret" not in shown
    assert "set UAIT_TOKEN" in str(caught.value)


def test_without_a_token_the_error_says_so(protocol_server: ProtocolServer) -> None:
    expected = r"No token is known for .*: run `uait login`, or set UAIT_TOKEN"
    with pytest.raises(errors.Unauthenticated, match=expected):
        Client(protocol_server.url).health()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.Unauthenticated),
        (403, errors.PermissionDenied),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (422, errors.InvalidInput),
        (429, errors.Busy),
        (500, errors.ServerError),
        (503, errors.Unavailable),
        (504, errors.Unavailable),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_problem_documents_become_errors_in_the_servers_words(
    client: Client,
    protocol_server: ProtocolServer,
    status: int,
    kind: type[errors.ServerError],
    streams: bool,
) -> None:
    problem = {"status": status, "code": "some-code", "detail": "It is so. Do that.", "extra": 1}

    def fault(handler: Handler) -> None:
        body = json.dumps(problem).encode()
        handler.send(status, "application/problem+json", body)

    protocol_server.faults |= {"health": fault, "chat": fault}
    with pytest.raises(errors.ServerError) as caught:
        client.chat(PROMPT) if streams else client.health()
    assert type(caught.value) is kind
    assert str(caught.value).startswith("It is so. Do that.")
    assert (caught.value.status, caught.value.code) == (status, "some-code")
    assert caught.value.problem == problem


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind", "message"),
    [
        (200, "text/html", b"<h1>Log in</h1>", errors.UnexpectedAnswer, "a login page"),
        (200, "application/json", b"[1]", errors.UnexpectedAnswer, "not UAIT's"),
        (200, "application/json", b"\xff", errors.UnexpectedAnswer, "not UAIT's"),
        (302, "text/html", b"", errors.UnexpectedAnswer, "answered 302"),
        (404, "text/html", b"<h1>?</h1>", errors.UnexpectedAnswer, "UAIT is not part of it"),
        (404, "application/json", b'{"message": "?"}', errors.UnexpectedAnswer, "extension enable"),
        (500, "application/json", b'{"message": "?"}', errors.UnexpectedAnswer, "answered 500"),
        (403, "application/json", b'{"message": "no"}', errors.PermissionDenied, "refused the"),
        (401, "text/html", b"no", errors.Unauthenticated, "refused the login"),
        (429, "text/html", b"slow", errors.Busy, "asked too often"),
        (502, "text/html", b"<h1>Bad</h1>", errors.ServerError, "the proxy before it"),
        (503, "text/html", b"<h1>Bad</h1>", errors.Unavailable, "is not ready"),
        (504, "text/html", b"<h1>Bad</h1>", errors.Unavailable, "in time"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_pages_of_proxies_and_others_are_told_apart(
    client: Client,
    protocol_server: ProtocolServer,
    status: int,
    content_type: str,
    body: bytes,
    kind: type[errors.UaitClientError],
    message: str,
    streams: bool,
) -> None:
    def fault(handler: Handler) -> None:
        handler.send(status, content_type, body, Location="http://elsewhere.invalid/?token=leak")

    protocol_server.faults |= {"health": fault, "chat": fault}
    with pytest.raises(errors.UaitClientError) as caught:
        client.chat(PROMPT) if streams else client.health()
    assert type(caught.value) is kind
    if not (streams and status == 200):
        assert message in str(caught.value)
    assert "leak" not in str(caught.value)


def test_an_answer_of_another_version_is_told_plainly(
    client: Client, protocol_server: ProtocolServer
) -> None:
    protocol_server.faults["models"] = lambda handler: handler.send(
        200, "application/json", b'{"models": [{"name": "x"}]}'
    )
    with pytest.raises(errors.UnexpectedAnswer, match="same version as this package"):
        client.models()


def test_half_a_surrogate_pair_cannot_break_a_display(
    client: Client, protocol_server: ProtocolServer
) -> None:
    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.event({"type": "delta", "text": "\ud83d and \U0001f642"})
        handler.event({"type": "done"})

    protocol_server.faults["chat"] = fault
    with client.chat(PROMPT) as events:
        text = next(iter(events))["text"]
    assert text == "? and \U0001f642"


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{held.getsockname()[1]}", "t")
        with pytest.raises(errors.NoAnswer, match="Start one with `uait lab`"):
            client.health()


def test_an_unknown_host() -> None:
    with pytest.raises(errors.NoAnswer, match="not known here"):
        Client("http://no-such-host.invalid:8888", "t").health()


def test_a_server_that_says_nothing_in_time(
    protocol_server: ProtocolServer,
) -> None:
    release = threading.Event()

    def fault(handler: Handler) -> None:
        release.wait(5)

    protocol_server.faults["health"] = fault
    client = Client(protocol_server.url, protocol_server.token, timeout=0.1)
    with pytest.raises(errors.NoAnswer, match="did not answer in time"):
        client.health()
    release.set()


@pytest.fixture
def raw_server() -> Iterator[Callable[[bytes], str]]:
    """Return a function that answers one connection with these bytes and closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(reply: bytes) -> str:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield serve
    listener.close()


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (b"", errors.NoAnswer, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", errors.NoAnswer, "closed the"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", errors.UnexpectedAnswer, "does not speak HTTP"),
        (b"HTTP/1.1 two hundred\r\n\r\n", errors.UnexpectedAnswer, "does not speak HTTP"),
    ],
)
def test_broken_answers(
    raw_server: Callable[[bytes], str],
    reply: bytes,
    kind: type[errors.UaitClientError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        Client(raw_server(reply), "t").health()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
DELTA = b'event: delta\ndata: {"type": "delta", "text": "a"}\n\n'
CHUNK = f"{len(DELTA):x}\r\n".encode() + DELTA + b"\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        HEAD + b"\r\n" + DELTA,
        CHUNKED + CHUNK,
        CHUNKED + CHUNK + b"ffff\r\nevent: de",
        CHUNKED + CHUNK + b"0\r\n\r\n",
        CHUNKED + CHUNK + b"not a size\r\n",
    ],
    ids=["closed", "no end", "within a chunk", "ended without done", "wrong chunk"],
)
def test_a_server_that_goes_in_the_middle_of_a_stream(
    raw_server: Callable[[bytes], str], reply: bytes
) -> None:
    with Client(raw_server(reply), "t").chat(PROMPT) as stream:
        events = iter(stream)
        assert next(events) == {"type": "delta", "text": "a"}
        with pytest.raises(errors.StreamBroken, match="in the middle of an answer"):
            next(events)


def test_a_stream_that_falls_silent(
    client: Client, protocol_server: ProtocolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "SILENCE_SECONDS", 0.1)
    release = threading.Event()

    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.event({"type": "delta", "text": "a"})
        release.wait(5)

    protocol_server.faults["chat"] = fault
    with client.chat(PROMPT) as events, pytest.raises(errors.StreamBroken, match="went silent"):
        list(events)
    release.set()


def test_an_error_event_is_the_servers_own_error(
    client: Client, protocol_server: ProtocolServer
) -> None:
    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.event({"type": "delta", "text": "a"})
        problem = {"status": 503, "code": "worker-died", "detail": "The worker died. Ask again."}
        handler.event(problem, "error")
        handler.end_stream()

    protocol_server.faults["chat"] = fault
    with client.chat(PROMPT) as events:
        iterator = iter(events)
        assert next(iterator)["text"] == "a"
        with pytest.raises(errors.Unavailable, match=r"The worker died\. Ask again\.") as caught:
            next(iterator)
    assert caught.value.code == "worker-died"


@pytest.mark.parametrize("data", ["no json", "[1]", "null"])
def test_events_that_are_not_uaits(
    client: Client, protocol_server: ProtocolServer, data: str
) -> None:
    def fault(handler: Handler) -> None:
        handler.begin_stream()
        handler.chunk(f"data: {data}\n\n")
        handler.end_stream()

    protocol_server.faults["chat"] = fault
    with client.chat(PROMPT) as events, pytest.raises(errors.UnexpectedAnswer, match="no event"):
        list(events)


def test_a_huge_answer_is_read_only_so_far(
    client: Client, protocol_server: ProtocolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LARGEST_ANSWER", 10)
    with pytest.raises(errors.UnexpectedAnswer):
        client.health()


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_collection_needs_a_name(client: Client, name: str) -> None:
    with pytest.raises(errors.UsageMistake, match="needs a name"):
        client.status(name)


def test_objects_are_read_strictly() -> None:
    assert event_stream.read_object('{"a": "\\u00e4"}') == {"a": "ä"}
    with pytest.raises(ValueError):
        event_stream.read_object("[]")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl cannot make a certificate here")
    return files


def test_https(
    protocol_server: ProtocolServer,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = protocol_server._http.socket
    protocol_server._http.socket = context.wrap_socket(listener, server_side=True)
    client = Client(protocol_server.url.replace("http:", "https:"), protocol_server.token)
    with pytest.raises(errors.NoAnswer, match=r"certificate of .* is not trusted here"):
        client.health()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert client.health()["live"] is True


def test_https_to_a_plain_server(protocol_server: ProtocolServer) -> None:
    client = Client(protocol_server.url.replace("http:", "https:"), "t")
    with pytest.raises(errors.NoAnswer, match="does not speak TLS"):
        client.health()
