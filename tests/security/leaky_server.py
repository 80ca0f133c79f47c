"""A server with the holes that the scanners look for, so that finding nothing means something."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE = """<!doctype html><title>shop</title>
<a href="/item?id=1">one</a> <a href="/say?text=hello">say</a> <a href="/go?to=/">go</a>"""


class Leaky(BaseHTTPRequestHandler):
    """SQL from text, HTML from a parameter, a redirect to anywhere, no headers."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        pages = {"/item": self.item, "/say": self.say, "/go": self.go}
        pages.get(parts.path, self.front)(query)

    def front(self, _: dict[str, str]) -> None:
        self.answer(200, PAGE)

    def item(self, query: dict[str, str]) -> None:
        database = sqlite3.connect(":memory:")
        database.executescript("CREATE TABLE items (id, name); INSERT INTO items VALUES (1, 'a');")
        try:
            rows = database.execute(f"SELECT name FROM items WHERE id = {query['id']}").fetchall()
            self.answer(200, f"<p>{rows}</p>")
        except sqlite3.Error as error:
            self.answer(500, f"sqlite3.OperationalError: {error}")
        finally:
            database.close()

    def say(self, query: dict[str, str]) -> None:
        self.answer(200, f"<p>{query.get('text')}</p>")

    def go(self, query: dict[str, str]) -> None:
        self.answer(302, "", Location=query.get("to", "/"))

    def answer(self, status: int, text: str, **headers: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {"Content-Type": "text/html", **headers}.items():
            self.send_header(name, value.replace("\n", "").replace("\r", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def leaky_server() -> Iterator[str]:
    """Run the server on a free loopback port; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Leaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
