"""Open WebSockets and streams end with the login that let them in (cases 45, 49, 52)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.security.conftest import Api, IdentityServer, Person
from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.tokens import AccessTokens

CLOSED_WITHIN = 5.0
MakeUser = Callable[..., Person]


@pytest.fixture(scope="module")
def kernel(server: IdentityServer, make_user: MakeUser) -> Iterator[str]:
    """Return the id of a kernel that somebody else started and that goes on running."""
    owner = server.login(make_user("developer"))
    answer = owner.post("api/kernels", {"name": "python3"})
    assert answer.status_code == 201, answer.text
    yield answer.json()["id"]
    owner.delete(f"api/kernels/{answer.json()['id']}")


async def connect(
    server: IdentityServer, path: str, headers: dict[str, str]
) -> WebSocketClientConnection:
    url = server.url.replace("http:", "ws:") + path
    return await websocket_connect(HTTPRequest(url, headers=headers))


def cookies(browser: Api) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{c.name}={c.value}" for c in browser.http.cookies.jar)}


async def seconds_until_closed(socket: WebSocketClientConnection, limit: float) -> float:
    """Read until the server closes; what comes meanwhile is dropped."""
    began = time.monotonic()
    async with asyncio.timeout(limit):
        while await socket.read_message() is not None:
            pass
    return time.monotonic() - began


async def hang_up(socket: WebSocketClientConnection) -> None:
    """Close our end, too, and let tornado notice."""
    socket.close()
    await asyncio.sleep(0.1)
    socket.protocol = None


def closes_after(
    server: IdentityServer,
    kernel: str,
    headers: dict[str, str],
    end: Callable[[], object],
    limit: float = CLOSED_WITHIN,
) -> None:
    """Open a kernel's channels, see that they live, end the login, see that they close."""

    async def go() -> None:
        socket = await connect(server, f"api/kernels/{kernel}/channels", headers)
        try:
            with pytest.raises(TimeoutError):  # no login has ended: it stays open
                await seconds_until_closed(socket, 3)
            await asyncio.to_thread(end)
            assert await seconds_until_closed(socket, limit + 5) <= limit
        finally:
            await hang_up(socket)

    asyncio.run(go())


def test_045_logout_closes_the_kernels_channels(
    server: IdentityServer, make_user: MakeUser, kernel: str
) -> None:
    browser = server.login(make_user("developer"))
    closes_after(server, kernel, cookies(browser), lambda: browser.post("~/logout"))


def test_049_disabling_a_person_closes_their_channels(
    server: IdentityServer, make_user: MakeUser, kernel: str
) -> None:
    person, admin = make_user("developer"), server.login(make_user("admin"))
    browser = server.login(person)

    def disable() -> None:
        assert admin.patch(f"~/users/{person.id}", {"disabled": True}).status_code == 200

    closes_after(server, kernel, cookies(browser), disable)


def test_045_a_role_that_is_taken_away_closes_the_channels(
    server: IdentityServer, make_user: MakeUser, kernel: str
) -> None:
    person = make_user("developer")
    browser = server.login(person)
    identity = server.identity

    def demote() -> None:  # by the command line: another process on the same database
        asyncio.run(identity.directory.change(OPERATOR, person.id, roles=["viewer"]))

    closes_after(server, kernel, cookies(browser), demote)


def test_045_a_revoked_api_key_closes_the_channels(
    server: IdentityServer, make_user: MakeUser, kernel: str
) -> None:
    browser = server.login(make_user("developer"))
    made = browser.post("~/me/keys", {"name": "socket", "permissions": ["kernels:run"]}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}

    def revoke() -> None:
        assert browser.delete(f"~/me/keys/{made['info']['id']}").status_code == 204

    closes_after(server, kernel, headers, revoke)


def test_052_channels_close_when_their_token_expires(
    server: IdentityServer, make_user: MakeUser, kernel: str
) -> None:
    person = make_user("developer")
    identity = server.identity
    tokens = AccessTokens(
        identity.database, server.foundation.sealer, identity.clock, "uait", lifetime=6
    )

    async def issue() -> str:
        return await tokens.issue(
            user_id=person.id, epoch=0, scope=["kernels:run"], authenticated_at=time.time()
        )

    token = asyncio.run(issue())
    expires = time.monotonic() + 6

    def wait() -> None:
        time.sleep(max(0.0, expires - time.monotonic()))

    closes_after(server, kernel, {"Authorization": f"Bearer {token}"}, wait)


def test_056_a_viewer_opens_no_websocket(
    server: IdentityServer, people: dict[str, Person], kernel: str
) -> None:
    headers = cookies(server.login(people["viewer"]))

    async def refused(path: str) -> int:
        try:
            socket = await connect(server, path, headers)
        except Exception as error:
            code: int = getattr(error, "code", 0)
            return code
        await hang_up(socket)
        return 101

    paths = [f"api/kernels/{kernel}/channels", "api/events/subscribe", "terminals/websocket/1"]
    assert [asyncio.run(refused(path)) for path in paths] == [403, 403, 403]


def test_045_logout_ends_a_stream_of_events(server: IdentityServer, make_user: MakeUser) -> None:
    browser = server.login(make_user("analyst"))
    body = {"model": "echo", "messages": [{"role": "user", "content": "word " * 3000}]}
    seen: list[str] = []
    with browser.http.stream(
        "POST",
        "uait/v1/chat",
        json=body,
        headers={"Accept": "text/event-stream", "X-XSRFToken": browser.http.cookies["_xsrf"]},
    ) as stream:
        assert stream.status_code == 200, stream.read()
        began = None
        try:
            for line in stream.iter_lines():
                seen.append(line)
                if began is None and line.startswith("data:"):
                    other = server.anonymous()
                    other.http.cookies = browser.http.cookies
                    assert other.post("~/logout").status_code == 204
                    began = time.monotonic()
        except httpx.RemoteProtocolError:
            pass  # cut in the middle of a chunk
    assert began is not None
    assert time.monotonic() - began <= CLOSED_WITHIN
    assert not [line for line in seen if line == "event: done"]
