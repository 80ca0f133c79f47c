"""An HTTP client for addresses that users choose: guarded, bounded in time and size.

The guard sits where the socket is opened: the name is resolved and checked there and the
connection goes to an address that was checked, so a name that changes between check and use gains
nothing. TLS still proves the name. Redirects are off; where a caller turns them on, each hop opens
its own connection and is checked like the first. Proxies of the environment are not used: behind
one, nobody here would know where a connection ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpcore2
import httpx2

from uait_server_ext.errors import AddressRefused, DeadlineExceeded, TooLarge

from .addresses import Allowed, Resolver, check_host, split_url

MAX_ANSWER_BYTES = 8 * 1024 * 1024
TOTAL_SECONDS = 30.0
STEP_SECONDS = 10.0
MAX_CONNECTIONS = 20


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Open connections to checked addresses only."""

    def __init__(self, allowed: Allowed, resolver: Resolver | None) -> None:
        self._inner = httpcore2.AnyIOBackend()
        self._allowed = allowed
        self._resolver = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's own parameter
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        target = await check_host(host, port, self._allowed, self._resolver)
        failure: Exception = httpcore2.ConnectError("no address")
        for address in target.addresses:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's own parameter
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise AddressRefused("A socket file is no address on the internet.")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class GuardedTransport(httpx2.AsyncHTTPTransport):
    """Transport of an `httpx2.AsyncClient`, or of Authlib's, that keeps to public addresses.

    Raises, from the request or while the answer is read:
        AddressRefused: the URL leads to an address that is neither public nor allowed.
        TooLarge: the answer has more than `max_bytes`.
        DeadlineExceeded: it took longer than `total_seconds`.
    """

    def __init__(
        self,
        allowed: Allowed | None = None,
        *,
        resolver: Resolver | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
        total_seconds: float = TOTAL_SECONDS,
        verify: Any = True,
    ) -> None:
        context = httpx2.create_ssl_context(verify=verify, trust_env=False)
        super().__init__(verify=context, trust_env=False)
        self._max_bytes = max_bytes
        self._total_seconds = total_seconds
        if not isinstance(getattr(self, "_pool", None), httpcore2.AsyncConnectionPool):
            raise RuntimeError("httpx2 keeps its connections elsewhere: the guard would not bite")
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=0,  # each request is checked anew
            network_backend=CheckedBackend(allowed or Allowed(), resolver),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        split_url(str(request.url))  # its form; its addresses when the socket is opened
        request.headers["Accept-Encoding"] = "identity"  # an answer must not grow when unpacked
        deadline = time.monotonic() + self._total_seconds
        try:
            async with asyncio.timeout(self._total_seconds):
                response = await super().handle_async_request(request)
        except TimeoutError:
            raise self._late() from None
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            await response.aclose()
            raise TooLarge("The other server sent a compressed answer that was not asked for.")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = BoundedStream(response.stream, self._max_bytes, deadline, self._late)
        return response

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"The other server did not answer within {self._total_seconds:g} s. Try again later."
        )


class BoundedStream(httpx2.AsyncByteStream):
    """An answer that ends in an error where it grows or lasts beyond its bounds."""

    def __init__(
        self,
        stream: httpx2.AsyncByteStream,
        max_bytes: int,
        deadline: float,
        late: Callable[[], Exception],
    ) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._late = late

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        chunks = aiter(self._stream)
        while True:
            try:
                async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise self._late() from None
            if chunk is None:
                return
            received += len(chunk)
            if received > self._max_bytes:
                raise TooLarge(
                    f"The other server's answer has more than {self._max_bytes:,} bytes."
                )
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def guarded_client(
    allowed: Allowed | None = None, *, resolver: Resolver | None = None, **bounds: Any
) -> httpx2.AsyncClient:
    """Return a client for URLs that users set; `bounds` are those of `GuardedTransport`."""
    return httpx2.AsyncClient(
        transport=GuardedTransport(allowed, resolver=resolver, **bounds),
        timeout=STEP_SECONDS,
        follow_redirects=False,
        trust_env=False,
    )
