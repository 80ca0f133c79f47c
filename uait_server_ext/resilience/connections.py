"""Connections of our HTTP clients: a request leaves in one piece, and connections are kept.

`httpcore2` writes a request's head and its body one after the other: two system calls and two
packets, and the other side wakes twice. Here what is written waits until something is to be read.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpcore2
import httpx2

MOST_WAITING_BYTES = 64 << 10
MAX_CONNECTIONS = 256


class JoinedStream(httpcore2.AsyncNetworkStream):
    """A connection whose writes are sent together."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        self._waiting: list[bytes] = []
        self._size = 0
        self._timeout: float | None = None

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's own parameter
    ) -> bytes:
        if self._waiting:
            # Who refuses a request may close before it has all come; its answer says why.
            with suppress(httpcore2.WriteError):
                await self._send(self._timeout)
        return await self._inner.read(max_bytes, timeout)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's own parameter
    ) -> None:
        self._waiting.append(buffer)
        self._size += len(buffer)
        self._timeout = timeout
        if self._size > MOST_WAITING_BYTES:
            await self._send(timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's own parameter
    ) -> httpcore2.AsyncNetworkStream:
        return JoinedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    async def _send(self, seconds: float | None) -> None:
        together = b"".join(self._waiting)
        self._waiting, self._size = [], 0
        await self._inner.write(together, seconds)


class JoiningBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections whose writes are sent together."""

    def __init__(self) -> None:
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's own parameter
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return JoinedStream(
            await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        )

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class PooledTransport(httpx2.AsyncHTTPTransport):
    """Transport over a pool of ours; it asks no proxy.

    Args:
        keep: how many connections are kept for the next request.
        trust_env: take certificates from `SSL_CERT_FILE` and `SSL_CERT_DIR`, as everybody does.
    """

    def __init__(
        self,
        backend: httpcore2.AsyncNetworkBackend | None = None,
        *,
        most: int = MAX_CONNECTIONS,
        keep: int = MAX_CONNECTIONS,
        verify: Any = True,
        trust_env: bool = True,
    ) -> None:
        context = httpx2.create_ssl_context(verify=verify, trust_env=trust_env)
        super().__init__(verify=context, trust_env=False)
        if not isinstance(getattr(self, "_pool", None), httpcore2.AsyncConnectionPool):
            raise RuntimeError("httpx2 keeps its connections elsewhere: the guard would not bite")
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=most,
            max_keepalive_connections=keep,
            network_backend=backend or JoiningBackend(),
        )
