"""Hostile input in every field of every operation: cases 74 to 78."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from uait_server_ext.api.operation import Operation
from uait_server_ext.api.v1 import operations
from uait_server_ext.identity.principal import ROLES
from uait_server_ext.resilience.limits import RATES

from .conftest import Api, IdentityServer, identity_server, user_maker
from .hostile import (
    LINES,
    MARK,
    PRODUCT,
    SQL,
    TEMPLATES,
    attacks,
    body_of,
    path_of,
    shell,
    with_input,
)

PLENTY = {name: {"user": 10**6, "key": 10**6, "ip": 10**6} for name in RATES}
LEAKS = ("sqlite", "sqlalchemy", "syntax error", "traceback", "operationalerror", 'file "/')
COMMANDS = {"command", "cmd", "args", "argv", "executable", "shell", "script", "program"}
SECONDS = 10.0


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server that may be ruined, without limits, with a model that repeats its prompt."""
    with identity_server(
        tmp_path_factory.mktemp("hostile"),
        f"--UaitApp.rate_limits={PLENTY!r}",
        "--UaitApp.chat_model=echo",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server: IdentityServer) -> Api:
    """Return the browser of an administrator who has just logged in: everything is open to it."""
    return server.login(user_maker(server)("admin", username="root"))


def send(client: Api, op: Operation, attack: dict[str, Any]) -> httpx.Response:
    """Send one attack and see that nothing has given way."""
    options: dict[str, Any] = {"headers": {"Accept": "application/json"}}
    if attack.get("body") is not None:
        options["json"] = attack["body"]
    if "query" in attack:
        options["params"] = attack["query"]
    started = time.monotonic()
    answer = client.request(op.method, attack["path"], **options)
    assert time.monotonic() - started < SECONDS, attack
    assert answer.status_code not in (500, 502), (attack, answer.text)
    if answer.status_code >= 400:
        kind = answer.headers["Content-Type"]
        assert kind.startswith(("application/problem+json", "text/html")), (attack, kind)
        leaked = [word for word in LEAKS if word in answer.text.lower()]
        assert not leaked or str(attack).lower().count(leaked[0]), (attack, answer.text)
    assert "evil" not in answer.headers.get("Set-Cookie", ""), attack
    return answer


@pytest.mark.parametrize("op", with_input(), ids=lambda op: op.key)
def test_074_sql_in_every_field_is_text(op: Operation, server: IdentityServer, admin: Api) -> None:
    for attack in attacks(op, SQL):
        send(admin, op, attack)
    assert admin.get("~/me").json()["username"] == "root"


def test_074_sql_in_credentials_is_text(server: IdentityServer) -> None:
    for text in SQL:
        for headers in (
            {"Authorization": f"Bearer {text}"},
            {"Authorization": f"Bearer uait_{text}"},
            {"Authorization": f"token {text}"},
            {"Authorization": text},
            {"X-Api-Key": text},
            {"X-XSRFToken": text},
            {"Cookie": f'uait_session="{text}"; _xsrf="{text}"; username="{text}"'},
        ):
            answer = server.anonymous().get("~/me", headers=headers)
            assert answer.status_code == 401, (headers, answer.text)
            assert not any(word in answer.text.lower() for word in LEAKS)


def test_074_the_database_is_whole_and_its_log_intact(server: IdentityServer, admin: Api) -> None:
    with sqlite3.connect(f"file:{server.state / 'uait.db'}?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM users").fetchone()[0] >= 1
        assert database.execute("SELECT count(*) FROM sessions").fetchone()[0] >= 1
    database.close()
    report = admin.get("~/audit/verify").json()
    assert report["intact"], report


@pytest.mark.parametrize("op", with_input(), ids=lambda op: op.key)
def test_075_templates_in_every_field_are_text(
    op: Operation, server: IdentityServer, admin: Api
) -> None:
    for attack in attacks(op, TEMPLATES):
        answer = send(admin, op, attack)
        assert PRODUCT not in answer.text, (attack, answer.text)


def test_075_a_template_in_a_name_is_shown_as_it_is(server: IdentityServer, admin: Api) -> None:
    for text in TEMPLATES:
        assert admin.patch("~/me", {"display_name": text}).status_code == 200
        assert admin.get("~/me").json()["display_name"] == text
        page = admin.get("uait/account")
        assert page.status_code == 200
        assert PRODUCT not in page.text
    admin.patch("~/me", {"display_name": "root"})


def test_075_a_template_in_a_prompt_reaches_the_model_as_it_is(
    server: IdentityServer, admin: Api
) -> None:
    for text in TEMPLATES:
        answer = admin.post(
            "~/chat",
            {"messages": [{"role": "user", "content": text}], "model": "echo"},
            headers={"Accept": "text/event-stream"},
        )
        assert answer.status_code == 200, answer.text
        assert PRODUCT not in answer.text


@pytest.mark.parametrize("op", with_input(), ids=lambda op: op.key)
def test_076_shell_characters_in_every_field_run_nothing(
    op: Operation, server: IdentityServer, admin: Api, tmp_path: Path
) -> None:
    for attack in attacks(op, shell(str(tmp_path))):
        send(admin, op, attack)
    assert not (tmp_path / MARK).exists()


def test_076_who_may_name_a_command_is_an_administrator_who_has_just_logged_in() -> None:
    ordinary = frozenset().union(*(ROLES[role] for role in ("viewer", "analyst", "developer")))
    for op in operations():
        schema = op.body.model_json_schema() if op.body else {}
        models = [schema, *schema.get("$defs", {}).values()]
        named = {name for model in models for name in model.get("properties", {})}
        if (named | set(op.parameters.model_fields)) & COMMANDS:
            assert op.sensitive, op.key
            assert op.permission not in ordinary, op.key


@pytest.mark.parametrize("op", with_input(), ids=lambda op: op.key)
def test_077_line_breaks_in_every_field_forge_no_line(
    op: Operation, server: IdentityServer, admin: Api
) -> None:
    for attack in attacks(op, LINES):
        answer = send(admin, op, attack)
        assert "set-cookie" not in answer.headers or "evil" not in answer.headers["set-cookie"]


def test_077_line_breaks_in_raw_requests_forge_no_header(
    server: IdentityServer, admin: Api
) -> None:
    for path in (
        "uait/v1/collections/a%0d%0aSet-Cookie:%20evil=1",
        "login?next=/lab%0d%0aSet-Cookie:%20evil=1",
        "lab/tree/%0d%0aSet-Cookie:%20evil=1",
        "uait/v1/login/oidc/a%0d%0aSet-Cookie:%20evil=1",
    ):
        answer = server.anonymous().get(path)
        assert "evil" not in answer.headers.get("set-cookie", "")
        assert "\n" not in answer.headers.get("location", "")


def test_077_the_log_has_no_forged_line_and_no_traceback(server: IdentityServer) -> None:
    log = server.logged()
    forged = [
        line
        for line in log.splitlines()
        if line.startswith(("WARNING forged", "forged", "Set-Cookie", f"touch {server.state}"))
    ]
    assert not forged, forged[:3]
    assert "\x1b[2J" not in log
    assert "Traceback" not in log, log[log.index("Traceback") : log.index("Traceback") + 3000]


def test_077_a_huge_name_at_login_is_short_in_the_log(server: IdentityServer, admin: Api) -> None:
    before = len(server.logged())
    huge = "n" * 900_000
    answer = server.anonymous().post("~/login", {"username": huge, "password": "x"})
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < 2000
    assert len(server.logged()) - before < 10_000
    events = admin.get("~/audit", params={"limit": 20}).text
    assert "n" * 200 not in events


@pytest.mark.parametrize(
    "op", [op for op in operations() if op.body is not None], ids=lambda op: op.key
)
@pytest.mark.parametrize("name", ["is_admin", "roles_", "owner_id", "__class__", ""])
def test_078_an_extra_field_is_refused(op: Operation, name: str, admin: Api) -> None:
    body = body_of(op)
    answer = send(admin, op, {"path": path_of(op), "body": {**body, name: "x"}})
    assert answer.status_code in (422, 429), (body, answer.text)


@pytest.mark.parametrize("op", operations(), ids=lambda op: op.key)
def test_078_an_extra_query_parameter_is_refused(op: Operation, admin: Api) -> None:
    if op.key == "GET /login/oidc/{provider}/callback":
        return  # providers add what they like (RFC 6749 section 4.1.2 says to ignore it)
    body = body_of(op) if op.body else None
    answer = send(admin, op, {"path": path_of(op), "body": body, "query": {"is_admin": "1"}})
    assert answer.status_code in (422, 429), answer.text


@pytest.mark.parametrize(
    "op", [op for op in operations() if op.body is not None], ids=lambda op: op.key
)
def test_078_a_body_of_another_shape_is_refused(op: Operation, admin: Api) -> None:
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    for body in (b"[]", b'"text"', b"7", b"null", b"true", b"[{}]", b'{"a":{"b":[1]}}', b"{"):
        answer = admin.request(op.method, path_of(op), content=body, headers=headers)
        assert answer.status_code in (422, 429), (body, answer.status_code, answer.text)
