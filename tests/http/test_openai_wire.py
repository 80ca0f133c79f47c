"""OpenAI's wire format, with the echo backend: requests, answers, streams, refusals."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPResponse

Fetch = Callable[..., Awaitable[HTTPResponse]]
SAY = [{"role": "user", "content": "hello wide world"}]
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


async def post(fetch: Fetch, path: str, body: Any) -> HTTPResponse:
    parts = ("uait", "openai", "v1", *path.split("/"))
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    return await fetch(*parts, method="POST", body=content, headers=headers, raise_error=False)


async def said(fetch: Fetch, path: str, body: Any) -> Any:
    response = await post(fetch, path, body)
    assert response.code == 200, response.body
    assert response.headers["Content-Type"].startswith("application/json")
    return json.loads(response.body)


async def streamed(fetch: Fetch, path: str, body: Any) -> tuple[list[dict[str, Any]], bool]:
    """Return the events of a stream, and whether it ended with [DONE]."""
    response = await post(fetch, path, {**body, "stream": True})
    assert response.code == 200, response.body
    assert response.headers["Content-Type"].startswith("text/event-stream")
    data = [
        line.removeprefix("data: ")
        for block in response.body.decode().strip().split("\n\n")
        for line in block.split("\n")
        if line.startswith("data: ")
    ]
    ended = data[-1] == "[DONE]"
    return [json.loads(one) for one in data if one != "[DONE]"], ended


async def refusal(fetch: Fetch, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    response = await post(fetch, path, body)
    assert response.code == status, response.body
    assert response.headers["Content-Type"].startswith("application/json")
    document = json.loads(response.body)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = document["error"]
    return error


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": SAY, **more}


async def test_a_completion(jp_fetch: Fetch) -> None:
    answer = await said(jp_fetch, "chat/completions", chat())
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "echo"
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "hello wide world",
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"
    used = answer["usage"]
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"] > 0


async def test_a_stream_adds_up_to_the_answer(jp_fetch: Fetch) -> None:
    options = {"stream_options": {"include_usage": True}}
    events, ended = await streamed(jp_fetch, "chat/completions", chat(**options))
    assert ended
    assert len({event["id"] for event in events}) == 1
    *chunks, usage = events
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "hello wide world"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}


async def test_several_answers_side_by_side(jp_fetch: Fetch) -> None:
    answer = await said(jp_fetch, "chat/completions", chat(n=3))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"hello wide world"}
    events, ended = await streamed(jp_fetch, "chat/completions", chat(n=2))
    assert ended
    texts = ["", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["hello wide world"] * 2


async def test_what_ends_an_answer_early(jp_fetch: Fetch) -> None:
    answer = await said(jp_fetch, "chat/completions", chat(stop="wide"))
    assert answer["choices"][0]["message"]["content"] == "hello "
    answer = await said(jp_fetch, "chat/completions", chat(max_completion_tokens=2))
    assert answer["choices"][0]["message"]["content"] == "hello wide"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_parts_developers_and_tools_are_understood(jp_fetch: Fetch) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "user", "content": parts},
    ]
    answer = await said(jp_fetch, "chat/completions", {"model": "echo", "messages": messages})
    assert answer["choices"][0]["message"]["content"] == "one\ntwo"


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"logit_bias": {}},
        {"modalities": ["text"]},
        {"parallel_tool_calls": True},
        {"tools": [], "tool_choice": "auto"},
        {"stop": None, "seed": None, "n": None, "stream": None},
        {"response_format": {"type": "text"}},
    ],
)
async def test_what_changes_nothing_is_accepted(jp_fetch: Fetch, harmless: dict[str, Any]) -> None:
    await said(jp_fetch, "chat/completions", chat(**harmless))


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"functions": []}, "functions"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "https://example.com/a"}}
                        ],
                    }
                ]
            },
            "messages",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{**TOOL, "function": {"name": "not a name"}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
async def test_what_would_change_the_answer_is_refused(
    jp_fetch: Fetch, wrong: dict[str, Any], param: str
) -> None:
    error = await refusal(jp_fetch, "chat/completions", chat(**wrong))
    assert error["type"] == "invalid_request_error"
    if param != "tool_choice":  # the echo backend refuses that by itself
        assert str(error["param"]).startswith(param)


async def test_what_a_backend_cannot_do_is_refused(jp_fetch: Fetch) -> None:
    schema = {"name": "x", "schema": {"type": "object"}}
    form = {"type": "json_schema", "json_schema": schema}
    for asked in ({"response_format": form}, {"logprobs": True}):
        error = await refusal(jp_fetch, "chat/completions", chat(**asked))
        assert error["code"] == "invalid_input"


async def test_errors_have_their_statuses_and_codes(jp_fetch: Fetch) -> None:
    error = await refusal(jp_fetch, "chat/completions", chat(model="gpt-nothing"), 404)
    assert error["code"] == "model_not_found"
    long = chat(messages=[{"role": "user", "content": "word " * 150_000}])
    error = await refusal(jp_fetch, "chat/completions", long)
    assert error["code"] == "context_length_exceeded"
    for broken in ("{", "[]", "7", '{"model": "echo"}'):
        await refusal(jp_fetch, "chat/completions", broken)
    await refusal(jp_fetch, "models", {}, 405)


async def test_models(jp_fetch: Fetch) -> None:
    response = await jp_fetch("uait", "openai", "v1", "models")
    page = json.loads(response.body)
    assert page["object"] == "list"
    by_id = {model["id"]: model for model in page["data"]}
    assert by_id["echo"]["object"] == "model"
    assert by_id["smollm2-135m-instruct"]["context_window"] > 0
    response = await jp_fetch("uait", "openai", "v1", "models", "echo")
    assert json.loads(response.body) == by_id["echo"]
    with pytest.raises(HTTPClientError) as missing:
        await jp_fetch("uait", "openai", "v1", "models", "none")
    assert missing.value.code == 404
    assert missing.value.response
    assert json.loads(missing.value.response.body)["error"]["code"] == "model_not_found"


async def test_a_text_is_gone_on_with(jp_fetch: Fetch) -> None:
    body = {"model": "echo", "prompt": ["one two", "three"], "n": 2}
    answer = await said(jp_fetch, "completions", body)
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in answer["choices"][:2]}) == 1
    events, ended = await streamed(jp_fetch, "completions", {"model": "echo", "prompt": "a b c"})
    assert ended
    assert "".join(event["choices"][0]["text"] for event in events)
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    for wrong in ({"echo": True}, {"suffix": "x"}, {"best_of": 3}, {"prompt": [1, 2]}):
        await refusal(jp_fetch, "completions", {"model": "echo", "prompt": "x", **wrong})


async def test_a_response(jp_fetch: Fetch) -> None:
    body = {"model": "echo", "instructions": "Be brief.", "input": "hello wide world"}
    answer = await said(jp_fetch, "responses", body)
    assert answer["object"] == "response"
    assert answer["status"] == "completed"
    assert answer["store"] is False
    assert answer["error"] is None
    (message,) = answer["output"]
    assert message["content"][0]["text"] == "hello wide world"
    assert answer["usage"]["input_tokens"] > 0
    short = await said(jp_fetch, "responses", {**body, "max_output_tokens": 1})
    assert short["status"] == "incomplete"
    assert short["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_response_as_a_stream(jp_fetch: Fetch) -> None:
    events, ended = await streamed(jp_fetch, "responses", {"model": "echo", "input": "a b"})
    assert not ended
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event["delta"] for event in events if event["type"].endswith("text.delta"))
    assert text == "a b" == events[-1]["response"]["output"][0]["content"][0]["text"]


async def test_a_conversation_goes_into_a_response(jp_fetch: Fetch) -> None:
    items = [
        {"role": "user", "content": "What time is it?"},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"role": "user", "content": [{"type": "input_text", "text": "thanks"}]},
    ]
    answer = await said(jp_fetch, "responses", {"model": "echo", "input": items, "store": False})
    assert answer["output"][0]["content"][0]["text"] == "thanks"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
    ],
)
async def test_a_response_that_cannot_be_had_is_refused(
    jp_fetch: Fetch, wrong: dict[str, Any], param: str
) -> None:
    error = await refusal(jp_fetch, "responses", {"model": "echo", "input": "x", **wrong})
    assert str(error["param"]).startswith(param)


async def test_vectors_that_cannot_be_had_are_refused(jp_fetch: Fetch) -> None:
    wrongs: list[dict[str, Any]] = [
        {"input": []},
        {"input": [1, 2]},
        {"input": [""]},
        {"model": "echo"},
    ]
    for wrong in wrongs:
        body = {"model": "auto", "input": "x", **wrong}
        response = await post(jp_fetch, "embeddings", body)
        assert response.code in (400, 404), response.body
        assert json.loads(response.body)["error"]["message"]
    await refusal(jp_fetch, "rerank", {"query": "x", "documents": []})
