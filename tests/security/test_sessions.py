"""Sessions against a running server: cases 44, 45 (over HTTP), 49, 50, 51 and 53."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, RequestHandler

from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker
from tests.security.test_passwords import NEW, RATES, attempt, enrol, problem
from tests.unit.identity.test_sessions import RedisServer
from uait_server_ext.identity.jupyter_provider import UaitIdentityProvider
from uait_server_ext.identity.service import IdentitySettings

pytestmark = pytest.mark.slow

CLOSED = ("~/me", "~/models", "/api/contents", "/api/me")


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server whose rate limits stay out of the way."""
    folder = tmp_path_factory.mktemp("sessions")
    with identity_server(folder, f"--UaitApp.rate_limits={RATES}") as running:
        yield running


@pytest.fixture(scope="module")
def make_user(server: IdentityServer) -> Callable[..., Person]:
    return user_maker(server)


@pytest.fixture(scope="module")
def boss(make_user: Callable[..., Person]) -> Person:
    return make_user("admin")


def session_cookie(answer: httpx.Response) -> Morsel[str]:
    """Return the session cookie that an answer sets."""
    for line in answer.headers.get_list("set-cookie"):
        for name, morsel in SimpleCookie(line).items():
            if "session" in name:
                return morsel
    raise AssertionError(f"no session cookie in {answer.headers}")


def held(client: Api) -> str:
    """Return the session secret that a browser holds."""
    found = [c.value for c in client.http.cookies.jar if "session" in c.name]
    assert len(found) == 1
    assert found[0]
    return found[0]


def cookie_name(client: Api) -> str:
    return next(c.name for c in client.http.cookies.jar if "session" in c.name)


def with_secret(server: IdentityServer, like: Api, secret: str) -> Api:
    """Return a browser that holds this session secret."""
    client = server.browser()
    client.http.cookies.set(cookie_name(like), secret, domain="127.0.0.1", path="/")
    return client


def is_out(client: Api) -> bool:
    """Tell whether every closed door is closed to a browser."""
    codes = {client.get(path).status_code for path in CLOSED}
    assert codes <= {401, 403} or codes == {200}
    return codes != {200}


# 44 -- a new secret at every step


def test_044_a_planted_session_is_refused_and_replaced(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    name = cookie_name(server.login(person))
    victim = server.browser()
    planted = "uaits_" + "p" * 43
    victim.http.cookies.set(name, planted, domain="127.0.0.1", path="/")
    assert victim.get("~/me").status_code == 401
    answer = attempt(victim, person.username, person.password)
    assert session_cookie(answer).value != planted
    attacker = server.browser()
    attacker.http.cookies.set(name, planted, domain="127.0.0.1", path="/")
    assert attacker.get("~/me").status_code == 401


def test_044_a_login_ends_the_session_that_the_browser_had(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    client = server.login(person)
    before = held(client)
    assert attempt(client, person.username, person.password).status_code == 200
    assert held(client) != before
    assert is_out(with_secret(server, client, before))


def test_044_the_second_factor_changes_the_session(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    app = enrol(server.login(person))
    client = server.browser()
    assert attempt(client, person.username, person.password).json()["state"] == "second-factor"
    pending = held(client)
    assert is_out(client)
    code = app.at(int(time.time()) + 30)  # the one of now confirmed the app
    assert client.post("~/login/totp", {"code": code}).status_code == 200
    assert held(client) != pending
    assert not is_out(client)
    assert is_out(with_secret(server, client, pending))


def test_044_a_fresh_proof_changes_the_session(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    client = server.login(person)
    before = held(client)
    problem(client.post("~/me/reauthenticate", {"password": "wrong"}), 401, "unauthenticated")
    assert client.post("~/me/reauthenticate", {"password": person.password}).status_code == 204
    assert held(client) != before
    assert is_out(with_secret(server, client, before))
    assert not is_out(client)


def test_044_a_new_role_ends_the_session(
    server: IdentityServer, boss: Person, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    client, admin = server.login(person), server.login(boss)
    assert not is_out(client)
    assert admin.patch(f"~/users/{person.id}", {"roles": ["analyst"]}).status_code == 200
    assert is_out(client)
    again = server.login(person)
    assert again.get("~/me").json()["roles"] == ["analyst"]


# 45 -- logout


def test_045_logout_ends_the_session_at_once(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    client, other = server.login(person), server.login(person)
    secret, like = held(client), server.login(person)
    assert client.get("~/logout").status_code == 405
    answer = client.post("~/logout")
    assert answer.status_code == 204
    assert session_cookie(answer).value == ""
    assert is_out(with_secret(server, like, secret))
    assert not is_out(other)


def test_045_logging_a_program_out_ends_its_refresh_family(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    browser, program = server.login(person), server.anonymous()
    begun = program.post("~/device", {"client": "test"}).json()
    decision = {"user_code": begun["user_code"], "decision": "approve"}
    assert browser.post("~/me/devices", decision).status_code in (200, 204)
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    body = {"grant_type": grant, "device_code": begun["device_code"]}
    tokens = program.post("~/token", body).json()
    api = server.program(tokens["access_token"])
    assert api.get("~/me").status_code == 200
    assert api.post("~/logout").status_code == 204
    body = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert program.post("~/token", body).status_code in (400, 401)
    assert browser.get("~/me").status_code == 200


# 49 -- changes end other sessions


def test_049_a_password_change_ends_the_other_sessions(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    mine, others = server.login(person), [server.login(person) for _ in range(3)]
    before = held(mine)
    body = {"current": person.password, "new": NEW}
    assert mine.post("~/me/password", body).status_code == 204
    assert not is_out(mine)
    assert all(is_out(other) for other in others)
    assert is_out(with_secret(server, mine, before))
    assert len(mine.get("~/me/sessions").json()["sessions"]) == 1


def test_049_a_new_factor_ends_the_other_sessions(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    mine, other = server.login(person), server.login(person)
    enrol(mine)
    assert not is_out(mine)
    assert is_out(other)


def test_049_disabling_ends_everything(
    server: IdentityServer, boss: Person, make_user: Callable[..., Person]
) -> None:
    person = make_user("developer")
    clients, admin = [server.login(person) for _ in range(2)], server.login(boss)
    assert admin.patch(f"~/users/{person.id}", {"disabled": True}).status_code == 200
    assert all(is_out(client) for client in clients)
    problem(attempt(server.browser(), person.username, person.password), 401, "unauthenticated")
    assert admin.patch(f"~/users/{person.id}", {"disabled": False}).status_code == 200
    assert all(is_out(client) for client in clients)  # an old session does not come back
    assert not is_out(server.login(person))


def test_049_deleting_ends_everything(
    server: IdentityServer, boss: Person, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    client, admin = server.login(person), server.login(boss)
    assert admin.delete(f"~/users/{person.id}").status_code == 204
    assert is_out(client)
    assert admin.get(f"~/users/{person.id}").status_code == 404


# 50 -- other people's sessions


def test_050_another_persons_session_is_not_there(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    ann, bob = (server.login(make_user("viewer")) for _ in range(2))
    session = ann.get("~/me/sessions").json()["sessions"][0]
    assert session["current"] is True
    listed = [one["id"] for one in bob.get("~/me/sessions").json()["sessions"]]
    assert session["id"] not in listed
    problem(bob.delete(f"~/me/sessions/{session['id']}"), 404, "not-found")
    problem(bob.delete("~/me/sessions/ses_aaaaaaaaaaaaaaaa"), 404, "not-found")
    assert not is_out(ann)
    assert ann.delete(f"~/me/sessions/{session['id']}").status_code == 204
    assert is_out(ann)


def test_050_a_session_in_a_list_opens_nothing(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    client = server.login(make_user("viewer"))
    answer = client.get("~/me/sessions")
    assert held(client) not in answer.text
    assert is_out(with_secret(server, client, answer.json()["sessions"][0]["id"]))


# 51 -- the cookie


def test_051_the_cookie_is_for_this_server_and_no_script(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    answer = attempt(server.browser(), person.username, person.password)
    cookie = session_cookie(answer)
    assert cookie["httponly"]
    assert cookie["samesite"] in ("Lax", "Strict")
    assert (cookie["domain"], cookie["path"]) == ("", "/")
    assert len(cookie.value) >= 43
    assert cookie.value not in answer.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_051_on_https_the_cookie_is_bound_to_host_and_encryption(scheme: str) -> None:
    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "lab.example"}),
        connection=Mock(context=None),
    )
    request.protocol = scheme
    handler: Any = RequestHandler(Application(), request)
    provider: Any = UaitIdentityProvider()
    provider.identity = SimpleNamespace(settings=IdentitySettings())
    provider.set_session_cookie(handler, "secret")
    provider.set_binding_cookie(handler, "binding")
    for cookie in handler._new_cookie.values():
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"
        assert bool(cookie["secure"]) == (scheme == "https")
        assert cookie.key.startswith("__Host-") == (scheme == "https")
        assert (cookie["domain"], cookie["path"]) == ("", "/")


def test_051_no_credential_is_taken_from_a_url(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    client = server.login(make_user("admin"))
    secret, thief = held(client), server.anonymous()
    for name in ("token", "session", "access_token", cookie_name(client)):
        for path in CLOSED:
            assert thief.get(path, params={name: secret}).status_code in (400, 401, 403, 422)
    for scheme in ("Bearer", "token"):
        for path in CLOSED:
            answer = thief.get(path, headers={"Authorization": f"{scheme} {secret}"})
            assert answer.status_code in (401, 403)


def test_051_no_secret_is_in_the_servers_log(
    server: IdentityServer, make_user: Callable[..., Person]
) -> None:
    person = make_user("viewer")
    client = server.login(person)
    client.get("~/me/sessions")
    attempt(client, "somebody", "a-password-nobody-has")
    logged = server.logged()
    assert held(client) not in logged
    assert "a-password-nobody-has" not in logged
    assert person.password not in logged


# 53 -- the store of sessions is gone


def test_053_without_redis_nobody_gets_in(jupyter_folders: dict[str, str], tmp_path: Path) -> None:
    redis = RedisServer()
    try:
        options = (f"--UaitApp.sessions_url={redis.url}", f"--UaitApp.rate_limits={RATES}")
        with identity_server(tmp_path, *options) as server:
            person = user_maker(server)("viewer")
            client = server.login(person)
            assert not is_out(client)
            redis.stop()
            began = time.monotonic()
            problem(attempt(server.browser(), person.username, person.password), 503, "unavailable")
            # What was cached of the session may serve for some seconds, and no longer.
            deadline = time.monotonic() + 40
            while client.get("~/me").status_code == 200 and time.monotonic() < deadline:
                time.sleep(0.5)
            problem(client.get("~/me"), 503, "unavailable")
            for path in ("/api/contents", "/api/kernels", "/lab"):
                answer = client.get(path)
                assert answer.status_code in (302, 401, 403, 503), path
            assert server.anonymous().get("~/health/live").status_code == 200
            assert time.monotonic() - began < 60
            revive(redis)
            assert client.get("~/me").status_code == 401  # it lost its data
            assert not is_out(server.login(person))
    finally:
        redis.stop()


def revive(redis: RedisServer) -> None:
    """Start a Redis again on its port, empty."""
    redis.process = subprocess.Popen(
        ["redis-server", "--port", str(redis.port), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", redis.port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("redis-server did not start again")
