"""A model hub on this machine: as much of its HTTP API as a download needs, and its bad days."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"  # kept as large files, known by their SHA-256


class Hub:
    """One repository, ``someone/tiny``; notes which ranges were asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cut_after: int | None = None  # bytes of a large file, then the connection ends
        self.ranges: list[tuple[str, str | None]] = []
        self.url = ""

    def siblings(self) -> list[dict[str, object]]:
        """Return what the hub says of each file."""
        return [self._sibling(name, data) for name, data in self.files.items()]

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        said: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            said["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        return said


class Handler(BaseHTTPRequestHandler):
    """Answers for one hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/someone/tiny"):
            said = {"id": "someone/tiny", "sha": COMMIT, "siblings": self.hub.siblings()}
            self._send(200, json.dumps(said).encode())
            return
        found = re.fullmatch(rf"/someone/tiny/resolve/{COMMIT}/([\w.-]+)", self.path)
        if found is None or found[1] not in self.hub.files:
            self._send(404, b"{}")
            return
        asked = self.headers.get("Range")
        self.hub.ranges.append((found[1], asked))
        whole = self.hub.files[found[1]]
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        headers = {}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(whole) - 1}/{len(whole)}"
        cut = self.hub.cut_after if found[1].endswith(LARGE) else None
        self._send(206 if asked else 200, whole[first:], headers, cut)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut is None:
            self.wfile.write(body)
        else:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def running_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a hub with these files; ``.url`` is its address."""
    hub = Hub(files)
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
