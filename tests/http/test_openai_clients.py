"""OpenAI's own client and an independent one, against a real server with a real model.

The independent one is `huggingface_hub`'s, which shares no code with OpenAI's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from pydantic import BaseModel

from tests.security.conftest import IdentityServer, identity_server, user_maker

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m-instruct"
SKY: Any = [{"role": "user", "content": "What colour is the sky? One short sentence."}]
SAY: Any = [{"role": "user", "content": "hello wide world"}]
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
KEY_LIMIT = 60


class Person(BaseModel):
    """What the model is to describe."""

    name: str
    age: int


@pytest.fixture(scope="module")
def server(
    model_cache: Path, jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server with UAIT's login, on which an API key may ask models 60 times a minute."""
    limits = (
        f"--UaitApp.rate_limits={{'inference': {{'user': 999, 'key': {KEY_LIMIT}, 'ip': 999}}}}"
    )
    with identity_server(tmp_path_factory.mktemp("openai"), limits) as running:
        yield running


@pytest.fixture(scope="module")
def make_key(server: IdentityServer) -> Callable[..., str]:
    """Return a function that makes an API key with permissions."""
    person = server.login(user_maker(server)("developer"))

    def make(*permissions: str) -> str:
        body = {"name": f"key for {len(permissions)}", "permissions": list(permissions)}
        answer = person.post("~/me/keys", body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["key"])

    return make


@pytest.fixture(scope="module")
def connect(server: IdentityServer) -> Iterator[Callable[[str], openai.OpenAI]]:
    """Return a function that gives OpenAI's client for an API key."""
    made: list[openai.OpenAI] = []

    def build(key: str) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(trust_env=False)
        url = f"{server.url}uait/openai/v1"
        made.append(
            openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=240, http_client=http)
        )
        return made[-1]

    yield build
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(make_key: Callable[..., str], connect: Callable[[str], openai.OpenAI]) -> openai.OpenAI:
    return connect(make_key("models:read", "models:run"))


def test_models(client: openai.OpenAI) -> None:
    assert MODEL in {model.id for model in client.models.list()}
    assert client.models.retrieve("echo").id == "echo"


def test_a_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=SKY, max_completion_tokens=24, user="somebody"
    )
    assert answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens > answer.usage.prompt_tokens > 0


def test_a_stream_is_what_comes_at_once(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": SKY, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 1


def test_seeds_stops_and_several_answers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": SKY,
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 7,
    }
    one, two = (client.chat.completions.create(**asked, n=2).choices for _ in range(2))
    assert [c.message.content for c in one] == [c.message.content for c in two]
    assert one[0].message.content != one[1].message.content
    stopped = client.chat.completions.create(model="echo", messages=SAY, stop=["wide"])
    assert stopped.choices[0].message.content == "hello "


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=SKY, max_tokens=4, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert bytes(token.bytes or []).decode() == token.token


def test_an_answer_of_a_type(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe Ada, who is 36."}],
        response_format=Person,
        max_tokens=48,
    )
    person = parsed.choices[0].message.parsed
    assert isinstance(person, Person)


def test_a_form_that_cannot_be_held_is_refused(client: openai.OpenAI) -> None:
    schema = {"type": "array", "uniqueItems": True}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as refused:
        client.chat.completions.create(model=MODEL, messages=SAY, response_format=form)
    assert refused.value.code == "invalid_input"


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=SKY, tools=[CLOCK], tool_choice="required", max_tokens=96
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    assert call.function.name == "clock"
    assert set(json.loads(call.function.arguments)) == {"city"}
    back: Any = [
        *SKY,
        choice.message.model_dump(exclude_none=True),
        *(
            {"role": "tool", "tool_call_id": made.id, "content": "noon"}
            for made in choice.message.tool_calls
        ),
    ]
    client.chat.completions.create(model=MODEL, messages=back, tools=[CLOCK], max_tokens=8)


def test_a_tool_is_called_in_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=SKY, tools=[CLOCK], tool_choice="required", max_tokens=96
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls
    json.loads(final.choices[0].message.tool_calls[0].function.arguments)


def test_a_text_is_gone_on_with(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=6)
    assert answer.choices[0].text
    pieces = client.completions.create(model=MODEL, prompt="Once upon a", max_tokens=6, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["a cat sat", "a cat was sitting", "stock prices fell"]
    answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
    first, second, third = (item.embedding for item in answer.data)
    assert len(first) == 384
    assert math.isclose(sum(x * x for x in first), 1.0, rel_tol=1e-4)
    near, far = (sum(a * b for a, b in zip(first, x, strict=True)) for x in (second, third))
    assert near > far
    plain = client.embeddings.create(
        model="auto", input=texts[0], encoding_format="float", dimensions=384
    )
    assert plain.data[0].embedding == pytest.approx(first, abs=1e-5)
    assert answer.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="384"):
        client.embeddings.create(model="auto", input="x", dimensions=64)


def test_texts_in_order_of_a_query(client: openai.OpenAI) -> None:
    body = {
        "query": "How do cats sleep?",
        "documents": ["The market closed lower.", "Cats sleep most of the day."],
        "top_n": 1,
        "return_documents": True,
    }
    answer: Any = client.post("/rerank", body=body, cast_to=object)
    (best,) = answer["results"]
    assert best["index"] == 1
    assert best["document"] == {"text": "Cats sleep most of the day."}


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input="Say hello.", instructions="Be brief.", max_output_tokens=12
    )
    assert answer.output_text
    assert answer.usage
    assert answer.usage.output_tokens > 0
    with client.responses.stream(model="echo", input="hello wide world") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_text == "hello wide world"
    parsed = client.responses.parse(
        model=MODEL, input="Describe Ada, who is 36.", text_format=Person, max_output_tokens=48
    )
    assert isinstance(parsed.output_parsed, Person)
    tool: Any = {"type": "function", "strict": True, **CLOCK["function"]}
    called = client.responses.create(
        model=MODEL,
        input="What time is it in Rome?",
        tools=[tool],
        tool_choice={"type": "function", "name": "clock"},
        max_output_tokens=96,
    )
    assert [item.type for item in called.output] == ["function_call"]
    with pytest.raises(openai.BadRequestError, match="stored"):
        client.responses.create(model="echo", input="x", previous_response_id="resp_1")


def test_errors_are_those_that_the_client_knows(
    client: openai.OpenAI,
    make_key: Callable[..., str],
    connect: Callable[[str], openai.OpenAI],
) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        connect("uait_" + "x" * 43).models.list()
    assert unknown.value.code == "invalid_api_key"
    reader = connect(make_key("models:read"))
    assert reader.models.list()
    with pytest.raises(openai.PermissionDeniedError, match="models:run"):
        reader.chat.completions.create(model="echo", messages=SAY)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-nothing", messages=SAY)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 20_000}]
        )
    assert long.value.code == "context_length_exceeded"


def test_an_independent_client(
    server: IdentityServer, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # it would ask a proxy that the environment names
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = f"{server.url}uait/openai/v1"
    other = InferenceClient(base_url=url, api_key=make_key("models:run"), timeout=240)
    answer = other.chat_completion(SAY, model="echo")
    assert answer.choices[0].message.content == "hello wide world"
    pieces = list(other.chat_completion(SAY, model="echo", stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == "hello wide world"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    held = other.chat_completion(SAY, model=MODEL, response_format=form, max_tokens=24)
    assert isinstance(json.loads(held.choices[0].message.content or "")["n"], int)


def test_too_many_requests_are_told_when_to_come_back(
    make_key: Callable[..., str], connect: Callable[[str], openai.OpenAI]
) -> None:
    busy = connect(make_key("models:read", "models:run"))

    def hurry() -> None:
        for _ in range(2 * KEY_LIMIT):
            busy.chat.completions.create(model="echo", messages=SAY)

    with pytest.raises(openai.RateLimitError) as limited:
        hurry()
    assert int(limited.value.response.headers["Retry-After"]) > 0
    assert limited.value.code == "rate_limit_exceeded"
    assert limited.value.type == "rate_limit_error"
