"""Budgets against a running server: what many streams at once can spend. Case 97."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker

pytestmark = pytest.mark.slow

STREAMS = 50


def chat(number: int, max_tokens: int = 40) -> dict[str, Any]:
    """Return a request that no other is equal to: equal ones at once would be one call."""
    message = {"role": "user", "content": f"Say it again, for the {number}th time."}
    return {"model": "echo", "messages": [message], "max_tokens": max_tokens}


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server whose budgets these tests may set, with room for fifty requests to wait."""
    folder = tmp_path_factory.mktemp("budgets")
    generous = "{'inference': {'user': 10000, 'key': 10000, 'ip': 10000}}"
    with identity_server(
        folder, f"--UaitApp.rate_limits={generous}", "--UaitApp.model_queue=100"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def make_user(server: IdentityServer) -> Callable[..., Person]:
    return user_maker(server)


@pytest.fixture(scope="module")
def admin(server: IdentityServer, make_user: Callable[..., Person]) -> Api:
    return server.login(make_user("admin"))


def put(admin: Api, kind: str, subject: str, **limits: float) -> dict[str, Any]:
    body = {"kind": kind, "subject": subject, "period": "month", "limits": limits}
    answer = admin.put("~/budgets", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def used(client: Api, id: str, subject: str) -> dict[str, Any]:
    """Return what is used of a budget and what is held by calls under way."""
    budgets = client.get("~/budgets").json()["budgets"]
    uses = next(budget["use"] for budget in budgets if budget["id"] == id)
    use: dict[str, Any] = next(use for use in uses if use["subject"] == subject)
    return use


def stream(client: Api, number: int = 0) -> tuple[int, dict[str, Any]]:
    """Ask for a stream and read it to its end; return status and last event, or the problem."""
    answer = client.post("~/chat", chat(number), headers={"Accept": "text/event-stream"})
    if answer.headers["Content-Type"].startswith("application/problem+json"):
        return answer.status_code, answer.json()
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return answer.status_code, json.loads(data[-1])


def at_once(clients: list[Api]) -> list[tuple[int, dict[str, Any]]]:
    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(stream, clients, range(len(clients))))


def programs(server: IdentityServer, person: Person, count: int) -> list[Api]:
    """Return so many callers of one person, each with a connection of its own."""
    answer = server.login(person).post(
        "~/me/keys", {"name": "streams", "permissions": ["models:run", "budgets:read"]}
    )
    assert answer.status_code == 200, answer.text
    return [server.program(answer.json()["key"]) for _ in range(count)]


def test_097_fifty_streams_stop_at_a_budget_of_calls(
    server: IdentityServer, admin: Api, make_user: Callable[..., Person]
) -> None:
    ann = make_user("developer")
    budget = put(admin, "principal", ann.id, calls=10)
    outcomes = at_once(programs(server, ann, STREAMS))
    counted = Counter(status for status, _ in outcomes)
    assert counted == {200: 10, 429: 40}
    assert {last["type"] for status, last in outcomes if status == 200} == {"done"}
    refusals = [problem for status, problem in outcomes if status == 429]
    assert {problem["code"] for problem in refusals} == {"budget-exceeded"}
    assert {problem["limit"] for problem in refusals} == {10}
    assert all(problem["retry_after"] > 0 for problem in refusals)
    assert used(admin, budget["id"], ann.id)["used"]["calls"] == 10
    ben = make_user("developer")
    assert stream(server.login(ben))[0] == 200, "it is Ann's budget"


def test_097_fifty_streams_stop_at_a_budget_of_tokens(
    server: IdentityServer, admin: Api, make_user: Callable[..., Person]
) -> None:
    """However they interleave: what they took never passes the limit, not even by one."""
    ann, limit = make_user("developer"), 700
    budget = put(admin, "principal", ann.id, tokens=limit)
    outcomes = at_once(programs(server, ann, STREAMS))
    assert {status for status, _ in outcomes} == {200, 429}
    took = sum(
        last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
        for status, last in outcomes
        if status == 200
    )
    use = used(admin, budget["id"], ann.id)
    assert 0 < took == use["used"]["tokens"] <= limit
    assert use["held"]["tokens"] == 0, "nothing is held by streams that ended"


def test_097_a_stream_that_its_reader_leaves_gives_back_what_it_held(
    server: IdentityServer, admin: Api, make_user: Callable[..., Person]
) -> None:
    ann = make_user("developer")
    budget = put(admin, "principal", ann.id, tokens=100_000)
    (client,) = programs(server, ann, 1)
    body = chat(0, max_tokens=2000)
    with client.http.stream("POST", "uait/v1/chat", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        assert any(line.startswith("data:") for line in answer.iter_lines())
    for _ in range(100):
        use = used(admin, budget["id"], ann.id)
        if use["held"]["tokens"] == 0 and use["used"]["calls"]:
            break
    assert use["held"]["tokens"] == 0
    assert use["used"]["calls"] == 1
    assert use["used"]["tokens"] < 1000


def test_097_a_notebook_stops_at_its_budget(
    server: IdentityServer, admin: Api, make_user: Callable[..., Person]
) -> None:
    put(admin, "notebook", "*", calls=1)
    client = server.login(make_user("developer"))
    for notebook, statuses in (("a.ipynb", [200, 429]), ("b.ipynb", [200, 429])):
        for status in statuses:
            answer = client.post("~/chat", chat(0), headers={"UAIT-Notebook": notebook})
            assert answer.status_code == status, answer.text
    assert stream(client)[0] == 200, "a request of no notebook"


def test_097_only_administrators_set_budgets_and_people_see_their_own(
    server: IdentityServer, admin: Api, make_user: Callable[..., Person]
) -> None:
    ann, eve = make_user("developer"), make_user("developer")
    mine = put(admin, "principal", ann.id, calls=5)
    client = server.login(eve)
    assert mine["id"] not in {b["id"] for b in client.get("~/budgets").json()["budgets"]}
    for answer in (
        client.put("~/budgets", {k: mine[k] for k in ("kind", "subject", "period", "limits")}),
        client.delete(f"~/budgets/{mine['id']}"),
    ):
        assert answer.status_code == 403, answer.text
    (seen,) = server.login(ann).get("~/budgets").json()["budgets"]
    assert seen["limits"]["calls"] == 5
    assert admin.delete(f"~/budgets/{mine['id']}").status_code == 204
    assert admin.delete(f"~/budgets/{mine['id']}").status_code == 404
    wrong: httpx.Response = admin.put("~/budgets", {"kind": "server", "limits": {}})
    assert wrong.status_code == 422
