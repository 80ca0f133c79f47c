"""Closed by default: no login no answer, no permission no answer, nothing public by accident."""

from __future__ import annotations

import json
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from jupyter_server.auth import Authorizer
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import JupyterServerAuthWarning
from tornado.httpclient import HTTPClientError, HTTPResponse

from uait_server_ext.api.openai import operations as openai_operations
from uait_server_ext.api.operation import PUBLIC, PUBLIC_OPERATIONS, Operation
from uait_server_ext.api.v1 import operations
from uait_server_ext.identity.jupyter_provider import ACTIONS
from uait_server_ext.identity.jupyter_routes import OPEN, OWN, ROUTES
from uait_server_ext.identity.principal import PERMISSIONS

Fetch = Callable[..., Awaitable[HTTPResponse]]
CLOSED = [op for op in operations() if op.permission != PUBLIC]


class DenyAll(Authorizer):
    """An administrator's authoriser that allows nothing."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return False


class ReadOnly(Authorizer):
    """An administrator's authoriser for people who may look."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return action == "read"


async def refused(fetch: Fetch, op: Operation, **options: Any) -> HTTPResponse:
    path = op.path.replace("{collection}", "docs")
    with pytest.raises(HTTPClientError) as caught:
        await fetch("uait", "v1", *path.strip("/").split("/"), method=op.method, **options)
    response = caught.value.response
    assert response is not None
    assert response.headers["Content-Type"].startswith("application/problem+json")
    return response


def body_of(op: Operation) -> dict[str, Any]:
    return {"body": "{}"} if op.method in ("POST", "PUT", "PATCH") else {}


@pytest.mark.parametrize("op", CLOSED, ids=lambda op: op.key)
async def test_without_login_every_operation_answers_401(jp_fetch: Fetch, op: Operation) -> None:
    response = await refused(jp_fetch, op, headers={"Authorization": ""}, **body_of(op))
    assert response.code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert json.loads(response.body)["code"] == "unauthenticated"


@pytest.mark.parametrize("op", CLOSED, ids=lambda op: op.key)
async def test_with_a_wrong_token_every_operation_answers_401(
    jp_fetch: Fetch, op: Operation
) -> None:
    headers = {"Authorization": "token wrong"}
    response = await refused(jp_fetch, op, headers=headers, **body_of(op))
    assert response.code == 401


class TestDenied:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"]["authorizer_class"] = DenyAll
        return jp_server_config

    @pytest.mark.parametrize("op", CLOSED, ids=lambda op: op.key)
    async def test_without_permission_every_operation_answers_403(
        self, jp_fetch: Fetch, op: Operation
    ) -> None:
        response = await refused(jp_fetch, op, **body_of(op))
        problem = json.loads(response.body)
        assert response.code == 403
        assert problem["code"] == "permission-denied"
        assert problem["permission"] == op.permission


class TestReadOnly:
    @pytest.fixture
    def jp_server_config(self, jp_server_config: dict[str, Any]) -> dict[str, Any]:
        jp_server_config["ServerApp"]["authorizer_class"] = ReadOnly
        return jp_server_config

    async def test_reading_is_allowed_and_writing_is_not(self, jp_fetch: Fetch) -> None:
        answer = await jp_fetch("uait", "v1", "collections")
        assert json.loads(answer.body) == {"collections": []}
        for op in CLOSED:
            if ACTIONS[op.permission.partition(":")[2]] != "read":
                assert (await refused(jp_fetch, op, **body_of(op))).code == 403


async def test_a_cookie_without_the_xsrf_token_is_refused(
    jp_serverapp: ServerApp, http_server_client: Any, jp_base_url: str
) -> None:
    login = await http_server_client.fetch(
        f"{jp_base_url}lab?token={jp_serverapp.identity_provider.token}", raise_error=False
    )
    cookies = "; ".join(c.partition(";")[0] for c in login.headers.get_list("Set-Cookie"))
    answer = await http_server_client.fetch(
        f"{jp_base_url}uait/v1/collections/docs/search",
        method="POST",
        body=json.dumps({"query": "x"}),
        headers={"Cookie": cookies},
        raise_error=False,
    )
    assert "username" in cookies
    assert answer.code == 403
    assert "_xsrf" in json.loads(answer.body)["detail"]


def test_the_public_list_is_exactly_what_is_declared_public() -> None:
    declared = {op.key for op in operations() if op.permission == PUBLIC}
    assert declared == PUBLIC_OPERATIONS == PUBLIC_ROUTES


# Written out a second time on purpose: who opens a route has to do it here, too.
PUBLIC_ROUTES = {
    "GET /health/live",
    "GET /jwks.json",
    "GET /login/methods",
    "GET /login/oidc/{provider}",
    "GET /login/oidc/{provider}/callback",
    "POST /device",
    "POST /invitation",
    "POST /kernel-token",
    "POST /login",
    "POST /login/passkey",
    "POST /login/passkey/options",
    "POST /login/recovery",
    "POST /login/totp",
    "POST /password-reset",
    "POST /setup",
    "POST /token",
    "POST /token/revoke",
}


def test_every_permission_is_used_and_has_an_action() -> None:
    routes = {name for by_method in ROUTES.values() for name in by_method.values()}
    used = {op.permission for op in CLOSED} | routes
    assert set(PERMISSIONS) <= used
    assert used - set(PERMISSIONS) == {OPEN, OWN}
    assert {name.partition(":")[2] for name in PERMISSIONS} == set(ACTIONS)


def test_jupyter_finds_no_route_of_ours_without_a_login_rule(
    jp_environ: None, tmp_path: Any
) -> None:
    ServerApp.clear_instance()
    with warnings.catch_warnings():
        warnings.simplefilter("error", JupyterServerAuthWarning)
        server = ServerApp.instance(
            allow_unauthenticated_access=False,
            jpserver_extensions={"uait_server_ext": True},
            reraise_server_extension_failures=True,
        )
        try:
            server.initialize(argv=[], find_extensions=False, new_httpserver=False)
            patterns = [
                rule.matcher.regex.pattern
                for group in server.web_app.default_router.rules
                for rule in getattr(group.target, "rules", [])
                if "/uait/" in getattr(getattr(rule.matcher, "regex", None), "pattern", "")
            ]
        finally:
            ServerApp.clear_instance()
    declared = (*operations(), *openai_operations())
    assert len(patterns) == len({op.prefix + op.pattern for op in declared})
