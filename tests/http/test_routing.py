"""Routing over HTTP: the decision comes with the answer, a failover is an event of the stream."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.test_models import Fetch, ask, chat, events_of
from tests.http.test_system import problem_of
from tests.unit.routing.mock_provider import MockProvider

FILE = """
[providers.one]
url = "{one}"
privacy = "local"
attempts = 1
[providers.one.models.m]
price = {{ input = 1.0, output = 2.0 }}
[providers.two]
url = "{two}"
[providers.two.models.m]
[[tiers]]
name = "large"
models = ["one/m", "two/m"]
"""


@pytest.fixture
def providers() -> Iterator[tuple[MockProvider, MockProvider]]:
    """Run two providers in a loop and thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    both = MockProvider("one"), MockProvider("two")
    for mock in both:
        asyncio.run_coroutine_threadsafe(mock.__aenter__(), loop).result(30)
    yield both
    for mock in both:
        asyncio.run_coroutine_threadsafe(mock.__aexit__(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def jp_server_config(
    jp_server_config: dict[str, Any],
    providers: tuple[MockProvider, MockProvider],
    tmp_path: Path,
) -> dict[str, Any]:
    file = tmp_path / "routing.toml"
    file.write_text(FILE.format(one=providers[0].url, two=providers[1].url))
    jp_server_config["UaitApp"]["routing_file"] = str(file)
    return jp_server_config


async def test_an_answer_comes_with_its_decision(
    jp_fetch: Fetch, providers: tuple[MockProvider, MockProvider]
) -> None:
    *deltas, done = events_of(await chat(jp_fetch, ask("hi") | {"model": "auto"}))
    assert done["text"] == "".join(event["text"] for event in deltas)
    assert done["text"].startswith("one answers hi")
    assert done["decision"]["provider"] == "one"
    assert done["decision"]["cost_usd"] > 0
    models = json.loads((await jp_fetch("uait", "v1", "models")).body)["models"]
    assert {"one/m", "two/m", "echo"} <= {model["id"] for model in models}


async def test_a_model_that_breaks_off_is_told_in_the_stream(
    jp_fetch: Fetch, providers: tuple[MockProvider, MockProvider]
) -> None:
    providers[0].usual = "cut:2"
    events = events_of(await chat(jp_fetch, ask("hi") | {"model": "auto"}))
    kinds = [event["type"] for event in events]
    place = kinds.index("failover")
    assert events[place]["to"] == "two/m"
    assert events[-1]["text"] == "".join(event["text"] for event in events[place + 1 : -1])


async def test_a_failing_model_that_was_named_is_a_problem(
    jp_fetch: Fetch, providers: tuple[MockProvider, MockProvider]
) -> None:
    providers[0].usual = "500"
    problem = await problem_of(chat(jp_fetch, ask("hi") | {"model": "one/m"}))
    assert (problem["status"], problem["code"]) == (503, "upstream-failed")
