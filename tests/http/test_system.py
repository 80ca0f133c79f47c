"""Health, the API description, and how errors leave the server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openapi_spec_validator import validate
from tornado.httpclient import HTTPClientError, HTTPResponse

from uait_server_ext import __version__
from uait_server_ext.api.openai import operations as openai_operations
from uait_server_ext.api.v1 import operations

Fetch = Callable[..., Awaitable[HTTPResponse]]
JSON = {"Content-Type": "application/json"}


async def problem_of(awaitable: Awaitable[HTTPResponse]) -> dict[str, Any]:
    with pytest.raises(HTTPClientError) as caught:
        await awaitable
    assert caught.value.response
    assert caught.value.response.headers["Content-Type"].startswith("application/problem+json")
    problem: dict[str, Any] = json.loads(caught.value.response.body)
    assert problem["status"] == caught.value.code
    assert problem["type"] == f"urn:uait:problem:{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    return problem


async def test_live_needs_no_login_and_tells_nothing_else(jp_fetch: Fetch) -> None:
    answer = await jp_fetch("uait", "v1", "health", "live", headers={"Authorization": ""})
    assert json.loads(answer.body) == {"live": True}


async def test_what_jupyterlab_adds_to_every_request_is_no_parameter(jp_fetch: Fetch) -> None:
    answer = await jp_fetch("uait", "v1", "models", params={"1795407109072": ""})
    assert answer.code == 200
    problem = await problem_of(jp_fetch("uait", "v1", "models", params={"unknown": "1"}))
    assert problem["code"] == "invalid-input"


async def test_health_becomes_ready_and_names_each_service(jp_fetch: Fetch) -> None:
    health = json.loads((await jp_fetch("uait", "v1", "health")).body)
    assert health["live"] is True
    assert health["version"] == __version__
    assert not health["ready"]
    await jp_fetch("uait", "v1", "models")  # waits until the services are there
    health = json.loads((await jp_fetch("uait", "v1", "health")).body)
    assert health["ready"]
    states = {service["name"]: service["state"] for service in health["services"]}
    assert states == {
        "chat": "ready",
        "embeddings": "ready",
        "knowledge": "ready",
        "routing": "ready",
    }


async def test_the_description_is_valid_openapi_and_complete(jp_fetch: Fetch) -> None:
    document = json.loads((await jp_fetch("uait", "v1", "openapi.json")).body)
    validate(document)
    described = {
        f"{method.upper()} {path.removeprefix('/uait/v1')}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert described == {op.key for op in (*operations(), *openai_operations())}
    for methods in document["paths"].values():
        for described_operation in methods.values():
            assert described_operation["summary"].endswith(".")
            assert described_operation["x-permission"]


async def test_unknown_method_is_405_and_says_which(jp_fetch: Fetch) -> None:
    problem = await problem_of(jp_fetch("uait", "v1", "models", method="DELETE"))
    assert problem["code"] == "method-not-allowed"
    assert "GET" in problem["detail"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("Not A Name", "pattern"), ("..", "pattern"), ("%2e%2e", "pattern"), ("a" * 64, "pattern")],
)
async def test_collection_names_that_could_be_paths_are_refused(
    jp_fetch: Fetch, name: str, message: str
) -> None:
    problem = await problem_of(jp_fetch("uait", "v1", "collections", name))
    assert problem["code"] in ("invalid-input", "not-found", "bad-request")


async def test_bad_json_is_422_with_its_place(jp_fetch: Fetch) -> None:
    path = ("uait", "v1", "collections", "docs", "search")
    for body in ("", "{", "[]", '{"query": 5}', '{"query": "x", "unknown": 1}', '{"query": ""}'):
        problem = await problem_of(jp_fetch(*path, method="POST", body=body, headers=dict(JSON)))
        assert problem["code"] == "invalid-input"
        assert problem["errors"]


async def test_a_body_over_the_limit_is_413(jp_fetch: Fetch) -> None:
    body = json.dumps({"query": "x" * (1 << 20)})
    problem = await problem_of(
        jp_fetch(
            *("uait", "v1", "collections", "docs", "search"),
            method="POST",
            body=body,
            headers=dict(JSON),
        )
    )
    assert problem["code"] == "too-large"


async def test_a_fault_of_ours_is_500_without_its_text(
    jp_fetch: Fetch, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = jp_serverapp.extension_manager.extension_apps["uait_server_ext"]
    (app,) = services

    def broken() -> None:
        raise RuntimeError("the secret is 1234")

    monkeypatch.setattr(app.services, "states", broken)
    problem = await problem_of(jp_fetch("uait", "v1", "health"))
    assert problem["code"] == "internal"
    assert "1234" not in json.dumps(problem)
