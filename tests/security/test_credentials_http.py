"""Tokens and API keys against a running server: the cases that only the whole way can show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.security.conftest import Api, IdentityServer, Person

KERNEL = "11111111-2222-3333-4444-555555555555"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
Make = Callable[..., Person]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def device_login(server: IdentityServer, browser: Api, scope: str | None = None) -> dict[str, Any]:
    """Log a client in by the device flow and return its tokens."""
    client = server.anonymous()
    begun = client.post("~/device", {"client": "test", "scope": scope})
    assert begun.status_code == 200, begun.text
    codes = begun.json()
    approval = {"user_code": codes["user_code"], "decision": "approve"}
    answer = browser.post("~/me/devices", approval)
    assert answer.status_code == 204, answer.text
    body = {"grant_type": DEVICE_GRANT, "device_code": codes["device_code"]}
    tokens = client.post("~/token", body)
    assert tokens.status_code == 200, tokens.text
    answered: dict[str, Any] = tokens.json()
    return answered


def make_key(browser: Api, **wanted: Any) -> dict[str, Any]:
    body = {"name": "test", "permissions": ["models:read", "system:read"]} | wanted
    made = browser.post("~/me/keys", body)
    assert made.status_code == 200, made.text
    answered: dict[str, Any] = made.json()
    return answered


def test_the_device_flow_from_end_to_end(server: IdentityServer, make_user: Make) -> None:
    browser, client = server.login(make_user("viewer")), server.anonymous()
    begun = client.post("~/device", {"client": "laptop"}).json()
    assert begun["verification_uri"] == f"{server.url}uait/device"
    body = {"grant_type": DEVICE_GRANT, "device_code": begun["device_code"]}
    pending = client.post("~/token", body)
    assert code(pending) == (400, "authorization_pending")
    assert pending.json()["error"] == "authorization_pending"
    asked = browser.post("~/me/devices/lookup", {"user_code": begun["user_code"]}).json()
    assert asked["client"] == "laptop"
    approval = {"user_code": begun["user_code"], "decision": "approve"}
    assert browser.post("~/me/devices", approval).status_code == 204
    assert code(client.post("~/token", body)) == (400, "slow_down")
    time.sleep(10)
    answer = client.post("~/token", body)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    tokens = answer.json()
    program = server.program(tokens["access_token"])
    assert program.get("~/me").status_code == 200
    (listed,) = program.get("~/me/devices").json()["devices"]
    assert (listed["client"], listed["current"]) == ("laptop", True)
    assert client.post("~/token/revoke", {"token": tokens["refresh_token"]}).status_code == 204
    assert program.get("~/me").status_code == 401


def test_037_a_refresh_token_or_a_session_secret_is_no_bearer_token(
    server: IdentityServer, make_user: Make
) -> None:
    browser = server.login(make_user("viewer"))
    tokens = device_login(server, browser)
    cookies = [cookie.value for cookie in browser.http.cookies.jar if cookie.value]
    for secret in (tokens["refresh_token"], *cookies):
        assert server.program(str(secret)).get("~/me").status_code == 401


def test_037_an_access_token_or_key_is_no_session_cookie(
    server: IdentityServer, make_user: Make
) -> None:
    browser = server.login(make_user("viewer"))
    token, key = device_login(server, browser)["access_token"], make_key(browser)["key"]
    (name,) = [cookie.name for cookie in browser.http.cookies.jar if "session" in cookie.name]
    for secret in (token, key):
        answer = server.anonymous().get("~/models", headers={"Cookie": f"{name}={secret}"})
        assert answer.status_code == 401


def test_040_what_a_user_holds_ends_with_their_account(
    server: IdentityServer, make_user: Make, people: dict[str, Person]
) -> None:
    person = make_user("developer")
    browser, admin = server.login(person), server.login(people["admin"])
    tokens, key = device_login(server, browser), make_key(browser)["key"]
    programs = [server.program(tokens["access_token"]), server.program(key)]
    for program in programs:
        assert program.get("~/models").status_code == 200
    # A role that was removed: the token ends at once, the key holds no more than its owner does.
    assert admin.patch(f"~/users/{person.id}", {"roles": ["viewer"]}).status_code == 200
    assert programs[0].get("~/models").status_code == 401
    assert programs[1].get("~/models").status_code == 200
    assert admin.patch(f"~/users/{person.id}", {"disabled": True}).status_code == 200
    body = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert code(server.anonymous().post("~/token", body)) == (401, "unauthenticated")
    for program in programs:
        assert program.get("~/models").status_code == 401
    assert admin.delete(f"~/users/{person.id}").status_code == 204
    for program in programs:
        assert program.get("~/models").status_code == 401


def test_046_a_refresh_token_used_twice_ends_the_login_and_is_recorded(
    server: IdentityServer, make_user: Make
) -> None:
    person = make_user("viewer")
    tokens = device_login(server, server.login(person))
    client = server.anonymous()
    body = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    second = client.post("~/token", body).json()
    program = server.program(second["access_token"])
    assert program.get("~/me").status_code == 200
    assert client.post("~/token", body).status_code == 401
    assert program.get("~/me").status_code == 401
    next_body = body | {"refresh_token": second["refresh_token"]}
    assert client.post("~/token", next_body).status_code == 401
    from uait_server_ext.events.audit import AuditQuery

    query = AuditQuery(action="token.reuse", principal=person.id)
    events = asyncio.run(server.foundation.audit.query(query)).events
    assert events[0].outcome == "refused"


def test_059_a_key_holds_no_more_than_its_maker(server: IdentityServer, make_user: Make) -> None:
    browser = server.login(make_user("developer"))
    wanted = {"name": "more", "permissions": ["models:read", "users:write"]}
    assert code(browser.post("~/me/keys", wanted)) == (403, "permission-denied")
    key = make_key(browser, permissions=["account:read", "account:write"])["key"]
    program = server.program(key)
    wanted = {"name": "child", "permissions": ["account:read"]}
    assert program.post("~/me/keys", wanted).status_code in (401, 403)
    assert len(browser.get("~/me/keys").json()["keys"]) == 1


def test_061_a_restricted_key_decides_alike_however_it_is_sent(
    server: IdentityServer, make_user: Make
) -> None:
    browser = server.login(make_user("developer"))
    permissions = ["models:read", "system:read", "kernels:read", "kernels:run", "contents:read"]
    key = make_key(browser, permissions=permissions, routes=["GET /models"])["key"]
    ways = [{"Authorization": f"Bearer {key}"}, {"Authorization": f"token {key}"},
            {"X-API-Key": key}]  # fmt: skip
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    client = server.anonymous()
    for way in ways:
        assert client.get("~/models", headers=way).status_code == 200
        for path in ("~/health", "api/contents", "api/kernels", "~/models/../health"):
            assert client.get(path, headers=way).status_code in (403, 404), path
        socket = client.get(f"api/kernels/{KERNEL}/channels", headers=way | upgrade)
        assert socket.status_code == 403
    basic = {"Authorization": httpx.BasicAuth("x", key)._auth_header}
    for refused in ({}, basic, {"X-API-Key": key, "Authorization": f"Bearer {key}"}):
        assert client.get("~/models", headers=refused).status_code == 401
        answer = client.get("~/models", params={"api_key": key}, headers=refused)
        assert answer.status_code in (401, 422)
    for name in ("api_key", "token", "access_token"):
        assert client.get("~/models", params={name: key}).status_code in (401, 422)


def test_061_a_bad_credential_does_not_fall_back_to_a_good_cookie(
    server: IdentityServer, make_user: Make
) -> None:
    browser = server.login(make_user("viewer"))
    for headers in ({"Authorization": "Bearer x"}, {"X-API-Key": ""}, {"Authorization": "Basic x"}):
        assert browser.get("~/models", headers=headers).status_code == 401


def test_a_key_is_bound_to_its_networks(server: IdentityServer, make_user: Make) -> None:
    browser = server.login(make_user("viewer"))
    here = make_key(browser, networks=["127.0.0.0/8"])["key"]
    elsewhere = make_key(browser, networks=["203.0.113.0/24"])["key"]
    assert server.program(here).get("~/models").status_code == 200
    answer = server.program(elsewhere).get("~/models", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "attack",
    ["' OR 1=1--", 'uait_"; DROP TABLE api_keys;--', "%00", "uait_{{7*7}}", "a.b.c", "a'.b.c"],
)
def test_074_sql_in_credential_headers_is_a_plain_401(server: IdentityServer, attack: str) -> None:
    client = server.anonymous()
    for headers in ({"Authorization": f"Bearer {attack}"}, {"X-API-Key": attack}):
        answer = client.get("~/models", headers=headers)
        assert answer.status_code == 401
        assert "sql" not in answer.text.lower()
    for body in (
        {"grant_type": "refresh_token", "refresh_token": attack},
        {"grant_type": DEVICE_GRANT, "device_code": attack},
    ):
        assert client.post("~/token", body).status_code in (400, 401)
