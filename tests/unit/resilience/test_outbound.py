"""The guarded client over real sockets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpcore2
import httpx2
import pytest

from uait_server_ext.errors import AddressRefused, DeadlineExceeded, TooLarge
from uait_server_ext.resilience.addresses import Allowed
from uait_server_ext.resilience.outbound import GuardedTransport, guarded_client

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOCAL = Allowed.of(["127.0.0.1"])


def answer(body: bytes, *headers: str, status: str = "200 OK") -> Reply:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "Connection: close"]

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return reply


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[int]:
    """Answer on a free loopback port; leaves no connection behind."""
    tasks: list[asyncio.Task[None]] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reply(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(hold(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def names(**table: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return [table[host.replace(".", "_")]]

    return resolver


def fetch(reply: Reply, **bounds: Any) -> httpx2.Response:
    async def run() -> httpx2.Response:
        async with serving(reply) as port, guarded_client(LOCAL, **bounds) as client:
            return await client.get(f"http://127.0.0.1:{port}/")

    return asyncio.run(run())


def test_an_allowed_address_answers_under_its_own_name() -> None:
    async def run() -> None:
        seen: list[bytes] = []

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        resolver = names(models_example="127.0.0.1")
        async with serving(reply) as port, guarded_client(LOCAL, resolver=resolver) as client:
            assert (await client.get(f"http://models.example:{port}/v1")).text == "ok"
        assert f"Host: models.example:{port}".encode().lower() in seen[0].lower()

    asyncio.run(run())


def test_a_large_answer_is_cut_off() -> None:
    with pytest.raises(TooLarge):
        fetch(answer(b"x" * 100_000), max_bytes=50_000)


def test_a_compressed_answer_is_refused() -> None:
    with pytest.raises(TooLarge, match="compressed"):
        fetch(answer(gzip.compress(b"\0" * 10_000_000), "Content-Encoding: gzip"))


def test_a_slow_answer_ends_at_the_deadline() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    with pytest.raises(DeadlineExceeded):
        fetch(drip, total_seconds=0.3)


def test_a_silent_server_ends_at_the_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(DeadlineExceeded):
        fetch(silent, total_seconds=0.2)


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(answer(b"direct")).text == "direct"


def test_the_guard_refuses_to_be_built_where_it_would_not_bite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere(self: object, **options: object) -> None:
        """Keep the connections under another name, as a later version might."""

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "__init__", elsewhere)
    with pytest.raises(RuntimeError, match="would not bite"):
        GuardedTransport()


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async def run() -> None:

        async def resolver(host: str, number: int) -> Sequence[str]:
            return ["127.0.0.2", "127.0.0.1"]

        allowed = Allowed.of(["127.0.0.0/8"])
        client = guarded_client(allowed, resolver=resolver)
        async with serving(answer(b"second")) as port, client:
            assert (await client.get(f"http://two.example:{port}/")).text == "second"

    asyncio.run(run())


def test_nothing_answers_is_a_connection_error() -> None:
    async def run() -> None:
        async with serving(answer(b"")) as port:
            pass
        async with guarded_client(LOCAL) as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get(f"http://127.0.0.1:{port}/")

    asyncio.run(run())


def test_a_socket_file_is_refused() -> None:
    pool = GuardedTransport(LOCAL)._pool
    assert isinstance(pool, httpcore2.AsyncConnectionPool)
    with pytest.raises(AddressRefused):
        asyncio.run(pool._network_backend.connect_unix_socket("/run/x.sock"))
