"""A model's tool calls against a running server: made as the person, never beyond. Cases 92, 93."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker
from tests.unit.routing.mock_provider import MockProvider, chunk, event

pytestmark = pytest.mark.slow

ROUTING = """
[providers.mock]
url = "http://127.0.0.1:{port}/v1"
privacy = "private"
[providers.mock.models.m]
name = "m"
context_tokens = 8192
"""


class ToolCaller(MockProvider):
    """A provider whose model calls the tools that a test writes down, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[tuple[str, dict[str, Any]]] = []

    async def _stream(
        self, kind: str, number: str, body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        if not self.wanted or body["messages"][-1]["role"] == "tool":
            return await super()._stream(kind, number, body, writer)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        calls = [
            {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for index, (name, arguments) in enumerate(self.wanted)
        ]
        event(writer, {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]})
        end = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
        event(writer, {"choices": [end]})
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        event(writer, {"choices": [], "usage": usage})
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@pytest.fixture(scope="module")
def provider() -> Iterator[ToolCaller]:
    """Run the provider in a thread with a loop of its own."""
    mock, started, loop = ToolCaller(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with mock:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield mock
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def server(
    provider: ToolCaller, jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    folder = tmp_path_factory.mktemp("tools")
    routing = folder / "routing.toml"
    routing.write_text(ROUTING.format(port=provider.port), "utf-8")
    with identity_server(folder, f"--UaitApp.routing_file={routing}") as running:
        yield running


@pytest.fixture(scope="module")
def make_user(server: IdentityServer) -> Callable[..., Person]:
    return user_maker(server)


@pytest.fixture(scope="module")
def ada(server: IdentityServer, make_user: Callable[..., Person]) -> Api:
    """Return an administrator with a secret of her own."""
    browser = server.login(make_user("admin"))
    made = browser.post("~/vault/secrets", {"name": "adas-own", "value": "very secret value"})
    assert made.status_code == 200, made.text
    return browser


@pytest.fixture(scope="module")
def eve(server: IdentityServer, make_user: Callable[..., Person]) -> Api:
    return server.login(make_user("developer"))


def assist(
    api: Api, provider: ToolCaller, *wanted: tuple[str, dict[str, Any]], **more: Any
) -> list[dict[str, Any]]:
    """Ask, with a model that wants these calls; return the events."""
    provider.wanted = list(wanted)
    body = {"model": "mock/m", "messages": [{"role": "user", "content": "Look."}]} | more
    answer = api.post("~/assist", body, headers={"Accept": "text/event-stream"})
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def answered(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == "tool_answer"]


def test_093_a_call_for_what_belongs_to_another_answers_404_as_to_the_person(
    ada: Api, eve: Api, provider: ToolCaller
) -> None:
    secret = ada.get("~/vault/secrets/adas-own").json()
    for key in (secret["id"], "adas-own"):
        direct = eve.get(f"~/vault/secrets/{key}")
        (found,) = answered(assist(eve, provider, ("get_secret", {"secret": key})))
        assert found["status"] == direct.status_code == 404
        assert json.loads(found["content"])["detail"] == direct.json()["detail"]
    (listed,) = answered(assist(eve, provider, ("list_secrets", {})))
    assert "adas-own" not in listed["content"]
    # The same call reaches it for the one whom it belongs to, and shows no value.
    (hers,) = answered(assist(ada, provider, ("get_secret", {"secret": "adas-own"})))
    assert (hers["status"], "very secret" in hers["content"]) == (200, False)


def test_093_the_model_reads_the_refusal_and_goes_on(eve: Api, provider: ToolCaller) -> None:
    events = assist(eve, provider, ("get_secret", {"secret": "nothing"}), ("list_models", {}))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == ["tool_call", "tool_answer", "tool_call", "tool_answer"]
    assert [found["status"] for found in answered(events)] == [404, 200]
    assert events[-1]["type"] == "done"
    told = provider.calls[-1]["messages"][-2:]
    assert [message["role"] for message in told] == ["tool", "tool"]
    assert [message["tool_call_id"] for message in told] == ["call_0", "call_1"]


def test_093_what_a_person_may_not_use_is_no_tool(
    server: IdentityServer, make_user: Callable[..., Person], provider: ToolCaller
) -> None:
    viewer = server.login(make_user("viewer"))
    names = {tool["name"] for tool in viewer.get("~/tools").json()["tools"]}
    assert "search" in names
    assert "get_secret" not in names
    (found,) = answered(assist(viewer, provider, ("get_secret", {"secret": "adas-own"})))
    assert found["status"] == 404
    refused = viewer.post(
        "~/assist",
        {"messages": [{"role": "user", "content": "x"}], "tools": ["get_secret"]},
    )
    assert refused.status_code == 422
    assert "There is no tool get_secret for you" in refused.json()["detail"]


def test_092_no_tool_changes_anything_or_shows_a_secret(ada: Api, provider: ToolCaller) -> None:
    names = {tool["name"] for tool in ada.get("~/tools").json()["tools"]}
    assert names == {
        "collection_status",
        "get_secret",
        "list_collections",
        "list_documents",
        "list_models",
        "list_secrets",
        "search",
    }
    for name in ("delete_secret", "reveal_secret", "delete_collection", "create_user"):
        (found,) = answered(assist(ada, provider, (name, {"secret": "adas-own"})))
        assert found["status"] == 404
    assert ada.get("~/vault/secrets/adas-own").status_code == 200


def test_arguments_that_fit_no_tool_are_said_to_the_model(eve: Api, provider: ToolCaller) -> None:
    events = assist(
        eve,
        provider,
        ("collection_status", {"collection": "../../etc"}),
        ("search", {"collection": "none", "query": 7}),
        ("list_models", {"also": "this"}),
    )
    assert [found["status"] for found in answered(events)] == [422, 422, 422]


def test_a_model_that_never_stops_calling_is_stopped(eve: Api, provider: ToolCaller) -> None:
    class Again(list):  # type: ignore[type-arg]
        """Calls that are wanted whatever was answered."""

    provider.wanted = Again([("list_models", {})])
    original = ToolCaller._stream

    async def always(self: ToolCaller, kind: str, number: str, body: Any, writer: Any) -> bool:
        messages = [*body["messages"], {"role": "user", "content": "x"}]
        return await original(self, kind, number, body | {"messages": messages}, writer)

    ToolCaller._stream = always  # type: ignore[method-assign]
    try:
        before = len(provider.calls)
        events = assist(eve, provider, ("list_models", {}), rounds=2)
    finally:
        ToolCaller._stream = original  # type: ignore[method-assign]
    assert len(provider.calls) - before == 3
    assert events[-1]["type"] == "done"
    assert provider.calls[-1]["tool_choice"] == "none"
