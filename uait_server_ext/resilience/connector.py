"""Connections of calls to other servers, for `aiohttp`: kept for the next call, or guarded.

`outbound.py` guards the clients that Authlib makes; here is the same guard for streams of model
answers, which `aiohttp` reads with half the work.
"""

from __future__ import annotations

import socket
import ssl

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from .addresses import Allowed, Resolver, check_host
from .outbound import MAX_CONNECTIONS as MAX_GUARDED_CONNECTIONS

MAX_CONNECTIONS = 256


class CheckedResolver(AbstractResolver):
    """Resolve names to addresses that were checked; the connection goes to one of these.

    `aiohttp` asks no resolver about an address in a URL: `check_url` is for these.
    """

    def __init__(self, allowed: Allowed | None = None, resolver: Resolver | None = None) -> None:
        self._allowed = allowed
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            AddressRefused: one of them is neither public nor allowed.
            Unavailable: it has none.
        """
        target = await check_host(host, port, self._allowed, self._resolver)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in target.addresses
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def kept_connections(certificates: ssl.SSLContext) -> aiohttp.TCPConnector:
    """Return connections that are kept for the next call."""
    return aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=certificates)


def guarded_connections(
    certificates: ssl.SSLContext, allowed: Allowed | None = None, resolver: Resolver | None = None
) -> aiohttp.TCPConnector:
    """Return connections to checked addresses, each checked anew."""
    return aiohttp.TCPConnector(
        limit=MAX_GUARDED_CONNECTIONS,
        ssl=certificates,
        resolver=CheckedResolver(allowed, resolver),
        use_dns_cache=False,
        force_close=True,
    )
