"""The guard of calls to model providers, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import httpx2
import pytest
from aiohttp import web

from uait_server_ext.errors import AddressRefused, Unavailable
from uait_server_ext.resilience.addresses import Allowed, Resolver
from uait_server_ext.resilience.connector import guarded_connections, kept_connections

CERTIFICATES = httpx2.create_ssl_context()
LOCAL = Allowed.of(["127.0.0.1"])


def names(*answers: str) -> Resolver:
    """Resolve any name to each address in turn, the last again and again."""
    left = list(answers)

    async def resolver(host: str, port: int) -> Sequence[str]:
        if not left:
            raise OSError
        return [left.pop(0) if len(left) > 1 else left[0]]

    return resolver


async def asked(
    connector: aiohttp.TCPConnector, times: int = 1, host: str = "models.example"
) -> list[str]:
    """Ask a server that answers with the caller's port; return its answers."""

    async def port(request: web.Request) -> web.Response:
        assert request.transport
        return web.Response(text=str(request.transport.get_extra_info("peername")[1]))

    app = web.Application()
    app.router.add_get("/", port)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    number = runner.addresses[0][1]
    answers = []
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            for _ in range(times):
                async with session.get(f"http://{host}:{number}/") as response:
                    answers.append(await response.text())
    finally:
        await runner.cleanup()
    return answers


def test_a_checked_name_is_connected_to_and_checked_anew_each_time() -> None:
    async def run() -> None:
        answers = await asked(
            guarded_connections(CERTIFICATES, allowed=LOCAL, resolver=names("127.0.0.1")), times=3
        )
        assert len(set(answers)) == 3  # no connection was kept

    asyncio.run(run())


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
def test_a_name_of_an_address_that_is_not_public_is_refused(address: str) -> None:
    async def run() -> None:
        with pytest.raises(AddressRefused):
            await asked(guarded_connections(CERTIFICATES, resolver=names(address)))

    asyncio.run(run())


def test_a_name_that_changes_between_two_calls_is_refused_at_the_second() -> None:
    async def run() -> None:
        turning = names("127.0.0.1", "169.254.169.254")
        with pytest.raises(AddressRefused):
            await asked(guarded_connections(CERTIFICATES, allowed=LOCAL, resolver=turning), times=2)

    asyncio.run(run())


def test_a_name_without_an_address_is_unavailable() -> None:
    async def run() -> None:
        with pytest.raises(Unavailable):
            await asked(guarded_connections(CERTIFICATES, resolver=names()))

    asyncio.run(run())


def test_connections_that_need_no_guard_are_kept() -> None:
    async def run() -> None:
        answers = await asked(kept_connections(CERTIFICATES), times=3, host="127.0.0.1")
        assert len(set(answers)) == 1

    asyncio.run(run())
