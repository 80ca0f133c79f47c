"""A server that speaks UAIT's wire format over real sockets, and shells that use it.

It is honest about the format (status lines, problem documents, chunked event streams, keep-alive
comments) and simple about the content: answers are fixed, so that tests know them. Faults are
handlers that a test puts in place of an operation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import settings
from IPython.core.interactiveshell import InteractiveShell

# A loaded machine is slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

Json = dict[str, Any]
TOKEN = "s3cret-t0ken-never-shown"
PROBLEMS = {
    401: "unauthenticated",
    403: "permission-denied",
    404: "not-found",
    409: "conflict",
    422: "invalid-input",
    429: "busy",
    503: "unavailable",
}
ASK_FIELDS = {"question", "model", "k", "max_tokens", "phrase"}
EXTRACT = "UAIT is installed with one command."
WORDS = ["You ", "install ", "it ", "with ", "`make lab`."]
CITATION = {
    "number": 1,
    "path": "docs/install.md",
    "title": "Install",
    "place": {"start": 0, "end": 35, "label": "§ Install", "page": None, "cell": None, "line": 3},
    "quote": EXTRACT,
}


class Refused(Exception):
    """The request is answered with a problem document."""

    def __init__(self, status: int, detail: str, code: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.document = {
            "type": f"urn:uait:problem:{code or PROBLEMS[status]}",
            "title": "A title",
            "status": status,
            "detail": detail,
            "code": code or PROBLEMS[status],
        }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    uait: ProtocolServer

    def do_GET(self) -> None:
        self.uait.answer(self)

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""

    def send(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
        """Send one whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        """Send the headers of an event stream."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, text: str) -> None:
        """Send a piece of the stream."""
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def event(self, event: Json, name: str = "") -> None:
        """Send one event."""
        self.chunk(f"event: {name or event['type']}\ndata: {json.dumps(event)}\n\n")

    def end_stream(self) -> None:
        """End the stream as HTTP wants it."""
        self.wfile.write(b"0\r\n\r\n")


class ProtocolServer:
    """A UAIT server of the tests; `.url`, `.token`, and what it saw.

    Attributes:
        requests: method, path and body of every request.
        faults: handlers in place of an operation, by the last segment of its path.
        delay: seconds between two deltas.
        pause: while it is set to an Event, streams wait for that after their first delta.
        cancelled: set when a client went away before its stream ended.
    """

    def __init__(self, token: str = TOKEN, base: str = "/") -> None:
        self.token, self.base = token, base
        self.requests: list[tuple[str, str, Json | None]] = []
        self.faults: dict[str, Callable[[Handler], None]] = {}
        self.delay = 0.0
        self.pause: threading.Event | None = None
        self.cancelled = threading.Event()
        self.paused = threading.Event()
        self.collections: dict[str, list[str]] = {"default": ["docs/install.md"]}
        handler = type("BoundHandler", (Handler,), {"uait": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{base}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def bodies(self, operation: str) -> list[Json | None]:
        """Return the bodies that an operation was sent."""
        return [body for _, path, body in self.requests if path.split("/")[-1] == operation]

    def answer(self, handler: Handler) -> None:
        """Answer one request."""
        path = unquote(urlsplit(handler.path).path)
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length)) if length else None
        prefix = f"{self.base}uait/v1/"
        operation = path.removeprefix(prefix)
        self.requests.append((handler.command, operation, body))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                self._authorise(handler, operation)
                fault = self.faults.get(operation.split("/")[-1])
                if fault is not None:
                    fault(handler)
                    return
                if not path.startswith(prefix):
                    raise Refused(404, "No such page.")
                self._operate(handler, operation, body or {})
            except Refused as refused:
                document = json.dumps(refused.document).encode()
                handler.send(refused.status, "application/problem+json", document)

    def _authorise(self, handler: Handler, operation: str) -> None:
        if operation == "health/live":
            return
        if handler.headers.get("Authorization") != f"token {self.token}":
            raise Refused(401, "This operation needs a login.")

    def _operate(self, handler: Handler, operation: str, body: Json) -> None:
        """Run an operation."""
        match [handler.command, *operation.split("/")]:
            case ["GET", "health", "live"]:
                self._json(handler, {"live": True})
            case ["GET", "health"]:
                health = {"live": True, "ready": True, "version": "1", "services": []}
                self._json(handler, health)
            case ["GET", "models"]:
                self._json(handler, {"models": MODELS})
            case ["GET", "collections"]:
                statuses = [self._status(name) for name in sorted(self.collections)]
                self._json(handler, {"collections": statuses})
            case ["GET", "collections", name]:
                self._json(handler, self._status(name))
            case ["DELETE", "collections", name]:
                self._status(name)
                del self.collections[name]
                handler.send_response(204)
                handler.end_headers()
            case ["POST", "collections", name, "search"]:
                self._status(name)
                self._json(handler, {"hits": HITS[: body.get("k", 8)], "seconds": 0.01})
            case ["POST", "collections", name, "ingest"]:
                self._ingest(handler, name, body.get("path"))
            case ["POST", "collections", name, "ask"]:
                self._status(name)
                self._ask(handler, name, body)
            case ["POST", "chat"]:
                self._chat(handler, body)
            case _:
                raise Refused(404, f"There is no operation {operation}.")

    def _json(self, handler: Handler, answer: Json) -> None:
        handler.send(200, "application/json", json.dumps(answer).encode())

    def _status(self, name: str) -> Json:
        if name not in self.collections:
            raise Refused(
                404, f"There is no collection '{name}'. Make it with an ingest.",
                "collection-not-found",
            )  # fmt: skip
        files = self.collections[name]
        return {
            "name": name,
            "documents": len(files),
            "chunks": 2 * len(files),
            "embedding_model": "minilm",
            "sources": ["docs"],
            "pending": [{"path": "docs/late.md", "error": None}],
            "failed": [{"path": "docs/bad.pdf", "error": "The PDF has no text."}],
            "ingesting": False,
            "generation": 3,
            "disk_bytes": 12_345,
            "from_a_later_version": True,
        }

    def _ask(self, handler: Handler, name: str, body: Json) -> None:
        if extra := set(body) - ASK_FIELDS:
            raise Refused(422, f"Unknown members: {sorted(extra)}.")
        self._check_model(body)
        declined = "unanswerable" in body["question"]
        evidence = {
            "type": "evidence",
            "declined": declined,
            "extract": None if declined else EXTRACT,
            "citations": [] if declined else [CITATION],
        }
        words = [] if declined or body.get("phrase") is False else WORDS
        phrasing = "".join(words) or None
        text = "The documents say nothing about this."
        if not declined:
            text = "\n\n".join(filter(None, (EXTRACT, phrasing)))
        answer = {
            "question": body["question"],
            "collection": name,
            "text": text,
            "phrasing": phrasing,
            "model": "echo" if words else None,
            "backend": "echo" if words else None,
            "usage": {"prompt_tokens": 12, "completion_tokens": len(words)},
            "seconds": 0.5,
            "first_token_seconds": 0.1,
            **{key: value for key, value in evidence.items() if key != "type"},
        }
        self._stream(handler, [evidence], words, {"type": "done", "answer": answer})

    def _chat(self, handler: Handler, body: Json) -> None:
        self._check_model(body)
        words = re.findall(r"\S+\s*", body["messages"][-1]["content"])
        done = {
            "type": "done",
            "text": "".join(words),
            "model": "echo",
            "backend": "echo",
            "finish_reason": "length" if body.get("max_tokens") == 1 else "stop",
            "usage": {"prompt_tokens": len(words), "completion_tokens": len(words)},
            "first_token_seconds": 0.1,
            "seconds": 0.2,
        }
        self._stream(handler, [], words, done)

    def _check_model(self, body: Json) -> None:
        if body.get("model", "auto") not in ("auto", "echo"):
            raise Refused(404, f"No model '{body['model']}' is known.", "model-not-found")

    def _stream(self, handler: Handler, first: list[Json], words: list[str], done: Json) -> None:
        """Stream events, with the pause that a test asked for."""
        try:
            handler.begin_stream()
            handler.chunk(": keep-alive\n\n")
            for event in first:
                handler.event(event)
            for number, word in enumerate(words):
                handler.event({"type": "delta", "text": word})
                time.sleep(self.delay)
                if self.pause is not None and number == 1:
                    self.paused.set()
                    while not self.pause.wait(0.01):
                        handler.chunk(": keep-alive\n\n")
            handler.event(done)
            handler.end_stream()
        except (BrokenPipeError, ConnectionResetError):
            self.cancelled.set()

    def _ingest(self, handler: Handler, name: str, path: str | None) -> None:
        """Report each file of a real folder; names ending in `.bad` cannot be read."""
        files: list[Path] = []
        if path is not None:
            if not Path(path).exists():
                raise Refused(422, f"There is no file or folder {path} on the server.")
            files = sorted(file for file in [Path(path), *Path(path).rglob("*")] if file.is_file())
        known = self.collections.setdefault(name, [])
        counts = dict.fromkeys(("added", "changed", "unchanged", "removed", "failed"), 0)
        try:
            handler.begin_stream()
            handler.event({"type": "started", "collection": name, "files": len(files)})
            for number, file in enumerate(files):
                state = "unchanged" if str(file) in known else "added"
                error = None
                if file.suffix == ".bad":
                    state, error = "failed", f"{file.name} is not readable: it is binary."
                else:
                    known.append(str(file))
                counts[state] += 1
                handler.event({"type": "file", "path": str(file), "state": state, "error": error})
                if self.pause is not None and number == 1:
                    self.paused.set()
                    while not self.pause.wait(0.01):
                        handler.chunk(": keep-alive\n\n")
            done = {"type": "done", "collection": name, "chunks": 7, "embedded": 5, "seconds": 0.3}
            handler.event(done | counts)
            handler.end_stream()
        except (BrokenPipeError, ConnectionResetError):
            self.cancelled.set()


MODELS = [
    {
        "id": "echo",
        "kind": "chat",
        "description": "Repeats the prompt.",
        "source": "package:uait",
        "licence": "BSD-3-Clause",
        "size_bytes": 0,
        "memory_bytes": 1_000_000,
        "context_tokens": 2048,
        "dimension": None,
        "state": "loaded",
        "backend": "echo",
        "default": True,
        "note": None,
    },
    {
        "id": "minilm",
        "kind": "embedding",
        "description": "Embeds.",
        "source": "package:minilm",
        "licence": "Apache-2.0",
        "size_bytes": 90_000_000,
        "memory_bytes": 120_000_000,
        "context_tokens": 256,
        "dimension": 384,
        "state": "pulled",
        "backend": "onnx",
        "default": True,
        "note": "Slow without AVX2.",
    },
]
HITS = [
    {
        "document_id": 1,
        "chunk_id": number,
        "path": f"docs/page {number}.md",
        "title": f"Page {number}",
        "place": {"start": 0, "end": 20, "label": f"lines 1-{number}", "line": 1},
        "text": f"Passage {number} about <installing>\nUAIT.",
        "score": 1.0 / number,
        "text_score": None,
        "dense_score": 0.5,
    }
    for number in (1, 2, 3)
]


@pytest.fixture
def protocol_server() -> Iterator[ProtocolServer]:
    """Run a server that speaks UAIT's wire format."""
    server = ProtocolServer()
    yield server
    if server.pause is not None:
        server.pause.set()
    server.stop()


@pytest.fixture
def start_protocol_server() -> Iterator[Callable[..., ProtocolServer]]:
    """Return a function that runs more servers; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> ProtocolServer:
            server = ProtocolServer(**settings)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an empty Jupyter runtime folder and an environment that names no server."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    for name in list(os.environ):
        if name.startswith(("UAIT_", "JUPYTERHUB_")) or name == "JPY_PARENT_PID":
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def write_runtime_file(runtime_dir: Path) -> Callable[..., Path]:
    """Return a function that writes a `jpserver-<pid>.json` as jupyter_server does."""

    def write(server: ProtocolServer | None = None, *, pid: int | None = None, **more: Any) -> Path:
        number = os.getpid() if pid is None else pid
        content: Json = {"pid": number, "password": False, "sock": "", "version": "2.21.1"}
        if server is not None:
            content |= {"url": server.url, "token": server.token, "base_url": server.base}
        path = runtime_dir / f"jpserver-{number}.json"
        path.write_text(json.dumps(content | more), encoding="utf-8")
        path.chmod(0o600)
        return path

    return write


@pytest.fixture
def fresh_session(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the connection that an earlier test has made."""
    import uait_kernel.functions
    import uait_kernel.session

    session = uait_kernel.session.Session()
    monkeypatch.setattr(uait_kernel.session, "SESSION", session)
    monkeypatch.setattr(uait_kernel.functions, "SESSION", session)


@pytest.fixture
def connected(
    protocol_server: ProtocolServer, fresh_session: None, monkeypatch: pytest.MonkeyPatch
) -> ProtocolServer:
    """Name the protocol server in the environment."""
    monkeypatch.setenv("UAIT_URL", protocol_server.url)
    monkeypatch.setenv("UAIT_TOKEN", protocol_server.token)
    return protocol_server


class MagicShell(InteractiveShell):
    """A real shell without history on disk, whose cells raise what they raise."""

    def run(self, cell: str) -> Any:
        """Run a cell as a user does, and return its value."""
        result = self.run_cell(cell, store_history=True)
        result.raise_error()
        return result.result


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MagicShell]:
    """Give the test a shell with the extension loaded."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    MagicShell.clear_instance()
    InteractiveShell.clear_instance()
    shell = MagicShell.instance()
    assert shell.history_manager is not None
    shell.history_manager.enabled = False
    shell.run("%load_ext uait_kernel")
    yield shell
    shell.run("%unload_ext uait_kernel")
    shell.history_manager.end_session()
    MagicShell.clear_instance()
    InteractiveShell.clear_instance()


@pytest.fixture
def within() -> Callable[[threading.Event], None]:
    """Return a function that waits for an event, at most two seconds."""

    def wait(event: threading.Event) -> None:
        began = time.monotonic()
        assert event.wait(2.0), f"nothing after {time.monotonic() - began:.1f} s"

    return wait
