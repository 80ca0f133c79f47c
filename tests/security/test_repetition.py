"""Repeated requests with an `Idempotency-Key` against a running server."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import httpx
import pytest

from .conftest import Api, IdentityServer, Person


@pytest.fixture(scope="module")
def admin(server: IdentityServer, people: dict[str, Person]) -> Api:
    return server.login(people["admin"])


def once() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def test_a_repetition_is_answered_and_not_carried_out(admin: Api) -> None:
    key = once()
    first = admin.put("~/groups/repeated", {"roles": ["viewer"]}, headers=key)
    admin.put("~/groups/repeated", {"roles": []})
    again = admin.put("~/groups/repeated", {"roles": ["viewer"]}, headers=key)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert admin.get("~/groups/repeated").json()["roles"] == []


def test_a_repetition_of_an_empty_answer_is_empty(admin: Api) -> None:
    admin.put("~/groups/emptied", {})
    key = once()
    for _ in range(2):
        answer = admin.delete("~/groups/emptied", headers=key)
        assert (answer.status_code, answer.content) == (204, b"")


def test_another_request_with_the_same_key_is_refused(admin: Api) -> None:
    key = once()
    assert admin.put("~/groups/one", {}, headers=key).status_code == 200
    assert admin.put("~/groups/two", {}, headers=key).status_code == 422
    assert admin.get("~/groups/two").status_code == 404


def test_a_secret_is_not_given_twice_and_not_made_twice(admin: Api) -> None:
    wish, key = {"name": "once", "permissions": ["models:read"]}, once()
    first = admin.post("~/me/keys", wish, headers=key)
    assert first.status_code == 200
    again = admin.post("~/me/keys", wish, headers=key)
    assert again.status_code == 409
    assert first.json()["key"] not in again.text
    assert [one["name"] for one in admin.get("~/me/keys").json()["keys"]].count("once") == 1


def test_a_failure_may_be_tried_again_with_its_key(admin: Api) -> None:
    key = once()
    assert admin.delete("~/groups/later", headers=key).status_code == 404
    admin.put("~/groups/later", {})
    assert admin.delete("~/groups/later", headers=key).status_code == 204


def test_someone_elses_key_is_not_ones_own(
    server: IdentityServer, admin: Api, people: dict[str, Person]
) -> None:
    key, change = once(), {"display_name": "same"}
    mine = admin.patch("~/me", change, headers=key).json()
    theirs = server.login(people["viewer"]).patch("~/me", change, headers=key).json()
    assert mine["id"] != theirs["id"]


def test_of_many_at_once_one_is_carried_out(admin: Api) -> None:
    headers = {**once(), "X-XSRFToken": admin.http.cookies["_xsrf"]}
    wish = {"name": "many", "permissions": ["models:read"]}

    async def run() -> list[int]:
        async with httpx.AsyncClient(
            base_url=admin.server.url, cookies=admin.http.cookies, trust_env=False, timeout=30
        ) as client:
            sent = (client.post("uait/v1/me/keys", json=wish, headers=headers) for _ in range(8))
            return [answer.status_code for answer in await asyncio.gather(*sent)]

    statuses = asyncio.run(run())
    assert sorted(statuses) == [200, *[409] * 7]
    assert [one["name"] for one in admin.get("~/me/keys").json()["keys"]].count("many") == 1
