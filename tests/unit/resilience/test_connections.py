"""Requests leave in one piece, and an early answer is read all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from uait_server_ext.resilience.connections import MOST_WAITING_BYTES, PooledTransport

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"


class Peer(asyncio.Protocol):
    """A server that notes each piece it gets, and answers when a request's end is there."""

    def __init__(self, pieces: list[bytes], connections: list[int], early: bool) -> None:
        self.pieces = pieces
        self.connections = connections
        self.early = early

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connections.append(1)
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.early:
            self.transport.write(REFUSAL)
            self.transport.close()
        elif data.endswith(b"end"):
            self.transport.write(ANSWER)


@asynccontextmanager
async def peer(*, early: bool = False) -> AsyncIterator[tuple[str, list[bytes], list[int]]]:
    """Run such a server; give its address, what it got and how often somebody connected."""
    pieces: list[bytes] = []
    connections: list[int] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(pieces, connections, early), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/", pieces, connections
    finally:
        server.close()


def client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=PooledTransport(), trust_env=False)


def test_head_and_body_arrive_together_and_the_connection_is_kept() -> None:
    async def run() -> None:
        async with peer() as (url, pieces, connections), client() as asking:
            for _ in range(3):
                assert (await asking.post(url, content=b"body's end")).text == "fine"
        assert len(pieces) == 3
        assert all(one.startswith(b"POST / ") and one.endswith(b"end") for one in pieces)
        assert len(connections) == 1

    asyncio.run(run())


def test_a_large_body_is_not_gathered() -> None:
    body = b"x" * (3 * MOST_WAITING_BYTES) + b"end"

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 1 << 14):
            yield body[at : at + (1 << 14)]

    async def run() -> None:
        async with peer() as (url, pieces, _), client() as asking:
            size = {"Content-Length": str(len(body))}
            answer = await asking.post(url, content=parts(), headers=size)
        assert answer.text == "fine"
        sent = b"".join(pieces)
        assert sent.endswith(body)
        assert len(pieces) > 1

    asyncio.run(run())


def test_who_refuses_before_all_has_come_is_heard() -> None:
    async def run() -> None:
        async with peer(early=True) as (url, _, _), client() as asking:
            answer = await asking.post(url, content=b"short")
        assert (answer.status_code, answer.text) == (413, "big")

    asyncio.run(run())
