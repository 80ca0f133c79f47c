"""URLs that users set: cases 82 and 83. What only this server can reach stays out of reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from uait_server_ext.errors import AddressRefused, UaitError, Unavailable
from uait_server_ext.resilience.addresses import Allowed, check_url
from uait_server_ext.resilience.outbound import guarded_client

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

PUBLIC = "93.184.216.34"
INNER = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://metadata.google.internal./",
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.000.000.001/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://[::]/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::10.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[fd00::1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://localhost/",
    "http://LOCALHOST:8888/",
    "http://localhost./",
    "http://\u2460\u2461\u2466.0.0.1/",
    "http://127.0.0.1\u3002/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://user@127.0.0.1/",
    "http://example.org@127.0.0.1/",
    "http://example.org:80@127.0.0.1/",
    "http://127.0.0.1#@example.org/",
    "http://127.0.0.1\\@example.org/",
    "http://example.org\\@127.0.0.1/",
    "http://127.0.0.1\t/",
    "http://127.0.0.1\r\nX: y/",
    "http:127.0.0.1/",
    "http:///127.0.0.1/",
    "http://",
    "//127.0.0.1/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:99999/",
    "http://" + "a" * 300 + ".example/",
    "http://127.0.0.1%2f@example.org/",
    "http://%31%32%37.0.0.1/",
]
OTHER_SCHEMES = [
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://127.0.0.1/",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "data:text/plain,x",
    "javascript:alert(1)",
    "unix:///run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/",
    "ws://127.0.0.1/",
    "jar:http://127.0.0.1!/",
    "/etc/passwd",
    "",
]


def names(**table: str) -> Resolver:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return [table.get(host.rstrip(".").replace(".", "_"), "127.0.0.1")]

    return resolver


class Turning:
    """A name that leads outside when it is checked and inside when it is used."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]]


@asynccontextmanager
async def inner_service(answer: bytes = b"canary") -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run what must not be reached; yield its port and the requests that reached it."""
    reached: list[bytes] = []
    tasks: list[asyncio.Task[None]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reached.append(b"(connected)")
            reached.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(
        lambda r, w: tasks.append(asyncio.ensure_future(talk(r, w))), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1], reached
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


@pytest.mark.parametrize("url", INNER)
def test_082_a_url_that_leads_inside_is_refused(url: str) -> None:
    # Even where a resolver takes the strange form for a name and finds the address behind it.
    with pytest.raises((AddressRefused, Unavailable)):
        asyncio.run(check_url(url, None, names()))
    with pytest.raises((AddressRefused, Unavailable)):
        asyncio.run(check_url(url))


@pytest.mark.parametrize("url", [*INNER, *OTHER_SCHEMES])
def test_082_the_client_opens_no_connection_for_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    async def run() -> None:
        async with guarded_client(resolver=names()) as client:
            await client.get(url)

    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            opened.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(
        (UaitError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.ConnectError)
    ):
        asyncio.run(run())
    assert not opened


def test_082_what_an_administrator_allowed_is_reached_and_its_neighbour_is_not() -> None:
    async def run() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer"
        async with inner_service(answer) as (port, reached):
            async with guarded_client(Allowed.of(["127.0.0.1"])) as client:
                assert (await client.get(f"http://127.0.0.1:{port}/")).text == "answer"
                with pytest.raises(AddressRefused):
                    await client.get(f"http://127.0.0.2:{port}/")
                with pytest.raises(AddressRefused):
                    await client.get(f"http://[::1]:{port}/")
            assert len(reached) == 2

    asyncio.run(run())


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/", "http://inner.example:{port}/", "file:///etc/passwd"]
)
def test_082_a_redirect_leads_nowhere_that_a_url_would_not(follow: bool, target: str) -> None:
    """The first host is allowed by name; the second is the same machine under another one."""

    async def run() -> None:
        async with inner_service() as (port, reached):
            location = target.format(port=port)
            redirect = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            async with inner_service(redirect.encode()) as (first, _):
                client = guarded_client(Allowed.of(["models.example"]), resolver=names())
                async with client:
                    request = client.get(f"http://models.example:{first}/", follow_redirects=follow)
                    if follow:
                        with pytest.raises((AddressRefused, httpx2.UnsupportedProtocol)):
                            await request
                    else:
                        assert (await request).status_code == 302
            assert reached == []

    asyncio.run(run())


def test_082_redirects_are_off_unless_asked_for() -> None:
    client = guarded_client()
    assert client.follow_redirects is False
    asyncio.run(client.aclose())


def test_082_a_name_that_changes_after_the_check_gains_nothing() -> None:
    async def run() -> None:
        async with inner_service() as (port, reached):
            turning = Turning(PUBLIC, "127.0.0.1")
            url = f"http://rebind.example:{port}/"
            assert (await check_url(url, None, turning)).addresses == (PUBLIC,)
            async with guarded_client(resolver=turning) as client:
                with pytest.raises(AddressRefused):
                    await client.get(url)
            assert turning.asked == 2, "the client must ask again, and judge its own answer"
            assert reached == []

    asyncio.run(run())


def test_082_the_connection_goes_to_the_address_that_was_checked() -> None:
    """The name is asked once a request: what is checked is what is connected."""

    async def run() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        async with inner_service(answer) as (port, reached):
            turning = Turning("127.0.0.1", "10.0.0.1")
            allowed = Allowed.of(["127.0.0.0/8"])
            async with guarded_client(allowed, resolver=turning) as client:
                assert (await client.get(f"http://rebind.example:{port}/")).text == "ok"
                assert turning.asked == 1
                # No connection is kept for a later request that would skip the check.
                with pytest.raises(AddressRefused):
                    await client.get(f"http://rebind.example:{port}/")
            assert len(reached) == 2

    asyncio.run(run())


def test_082_one_inner_address_among_others_is_enough_to_refuse() -> None:
    async def both(host: str, port: int) -> Sequence[str]:
        return [PUBLIC, "127.0.0.1"]

    async def run() -> None:
        async with inner_service() as (port, reached):
            async with guarded_client(resolver=both) as client:
                with pytest.raises(AddressRefused):
                    await client.get(f"http://two.example:{port}/")
            assert reached == []

    asyncio.run(run())


@pytest.mark.parametrize("url", OTHER_SCHEMES)
def test_083_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        asyncio.run(check_url(url))
    with pytest.raises(AddressRefused):
        asyncio.run(check_url(url, Allowed.of(["127.0.0.1", "localhost"]), names()))
