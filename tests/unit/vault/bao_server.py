"""A server that speaks the part of OpenBao's and Vault's HTTP protocol that UAIT uses.

KV version 2 and transit, as their API documentation describes them; written for the tests, since
neither server can be installed from a package index.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography.fernet import Fernet
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

TOKEN = "s.test-token"


@dataclass
class Bao:
    """What the server holds and how it is to behave."""

    address: str = ""
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    transit: Fernet = field(default_factory=lambda: Fernet(Fernet.generate_key()))
    fails_with: int = 0
    answers: bytes | None = None
    delay: float = 0.0
    asked: list[str] = field(default_factory=list)


class Handler(RequestHandler):
    def initialize(self, bao: Bao) -> None:
        self.bao = bao

    async def prepare(self) -> None:
        self.bao.asked.append(f"{self.request.method} {self.request.path}")
        await asyncio.sleep(self.bao.delay)
        if self.bao.answers is not None:
            self.finish(self.bao.answers)
        elif self.bao.fails_with:
            self.refuse(self.bao.fails_with, "sealed")
        elif self.request.headers.get("X-Vault-Token") != TOKEN:
            self.refuse(403, "permission denied")

    def refuse(self, status: int, why: str | None) -> None:
        self.set_status(status)
        self.finish({"errors": [why] if why else []})


class KeyValue(Handler):
    def get(self, mount: str, path: str) -> None:
        data = self.bao.secrets.get(f"{mount}/{path}")
        if data is None:
            self.refuse(404, None)
        else:
            self.finish({"data": {"data": data, "metadata": {"version": 1}}})


class Transit(Handler):
    def post(self, verb: str, _key: str) -> None:
        body = json.loads(self.request.body)
        if verb == "encrypt":
            sealed = self.bao.transit.encrypt(base64.b64decode(body["plaintext"]))
            self.finish({"data": {"ciphertext": f"vault:v1:{sealed.decode()}"}})
        else:
            opened = self.bao.transit.decrypt(body["ciphertext"].removeprefix("vault:v1:"))
            self.finish({"data": {"plaintext": base64.b64encode(opened).decode()}})

    put = post


@contextmanager
def bao_server() -> Iterator[Bao]:
    """Run the server on a loopback port in a thread."""
    bao = Bao()
    started = threading.Event()
    stop: list[Any] = []

    async def serve() -> None:
        socket, port = bind_unused_port()
        server = HTTPServer(
            Application(
                [
                    (r"/v1/transit/(encrypt|decrypt)/(\w+)", Transit, {"bao": bao}),
                    (r"/v1/(\w+)/data/(.+)", KeyValue, {"bao": bao}),
                ]
            )
        )
        server.add_sockets([socket])
        bao.address = f"http://127.0.0.1:{port}"
        ended = asyncio.Event()
        stop.extend((asyncio.get_running_loop(), ended))
        started.set()
        await ended.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    try:
        yield bao
    finally:
        loop, ended = stop
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
