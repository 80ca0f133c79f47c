"""Each verifier accepts what is right and rejects what is not, and asks no more than it needs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.inference.models import (
    ChatDone,
    ChatRequest,
    TokenLogprob,
    ToolCall,
    TopLogprob,
    Usage,
)
from uait_server_ext.routing.models import HeldAnswer, Verdict, Verifier
from uait_server_ext.routing.verify import (
    AllOf,
    Citations,
    CodeResult,
    LogprobMargin,
    SchemaVerifier,
    SelfAgreement,
    TestsVerifier,
    agree,
    answer_key,
)

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {"name": "weather", "parameters": {"type": "object", "required": ["city"]}}


def request(**options: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "?"}], **options})


def answer(text: str = "", *, reason: str = "stop", **fields: Any) -> HeldAnswer:
    return HeldAnswer.model_validate(
        {
            "text": text,
            "model": "m",
            "backend": "b",
            "finish_reason": reason,
            "usage": Usage(),
            "first_token_seconds": 0.0,
            "seconds": 0.0,
            **fields,
        }
    )


@dataclass
class Samples:
    """Further answers of the model, and what was asked for them."""

    texts: Sequence[str] = ()
    asked: list[ChatRequest] = field(default_factory=list)

    async def again(self, request: ChatRequest) -> ChatDone:
        self.asked.append(request)
        return answer(self.texts[len(self.asked) - 1])


def judge(
    verifier: Verifier, text: ChatDone, asked: ChatRequest | None = None, *more: str
) -> Verdict:
    verdict = asyncio.run(verifier.verify(asked or request(), text, Samples(more).again))
    assert 0 <= verdict.score <= 1
    return verdict


@pytest.mark.parametrize(
    ("text", "accepted", "why"),
    [
        ('{"name": "Ada", "age": 36}', True, ""),
        ('{"name": "Ada", "age": -1}', False, "$.age"),
        ('{"name": "Ada"}', False, "'age' is a required property"),
        ('{"name": "Ada", "age": 36, "x": 1}', False, "x"),
        ('Here it is: {"name": "Ada", "age": 36}', False, "no JSON"),
        ("[" * 100_000, False, "too long|no JSON"),
        ("[" * 50_000, False, "no JSON"),
        ("", False, "no JSON"),
    ],
)
def test_schema(text: str, accepted: bool, why: str) -> None:
    form = {"type": "json_schema", "json_schema": SCHEMA}
    verdict = judge(SchemaVerifier(), answer(text), request(response_format=form))
    assert verdict.accepted is accepted
    assert any(part in verdict.why for part in why.split("|"))


def test_schema_of_any_object_and_of_what_was_cut() -> None:
    form = request(response_format={"type": "json_object"})
    assert judge(SchemaVerifier(), answer("{}"), form).accepted
    assert not judge(SchemaVerifier(), answer("[]"), form).accepted
    assert not judge(SchemaVerifier(), answer("{}", reason="length"), form).accepted


def test_a_schema_fetches_nothing_and_runs_no_expression_for_ever() -> None:
    remote = {"type": "json_schema", "json_schema": {"$ref": "http://127.0.0.1:9/schema"}}
    verdict = judge(SchemaVerifier(), answer("{}"), request(response_format=remote))
    assert not verdict.accepted
    assert "refers to what there is not" in verdict.why
    slow = {"type": "json_schema", "json_schema": {"type": "string", "pattern": "(a+)+$"}}
    text = '"' + "a" * 60 + '!"'
    assert judge(SchemaVerifier(), answer(text), request(response_format=slow)).accepted


@pytest.mark.parametrize(
    ("name", "arguments", "accepted"),
    [
        ("weather", '{"city": "Paris"}', True),
        ("weather", "{}", False),
        ("weather", "Paris", False),
        ("clock", "{}", False),
    ],
)
def test_schema_of_tool_calls(name: str, arguments: str, accepted: bool) -> None:
    call = ToolCall(id="1", name=name, arguments=arguments)
    done = answer(tool_calls=[call], reason="tool_calls")
    assert judge(SchemaVerifier(), done, request(tools=[TOOL])).accepted is accepted


def test_a_tool_that_must_be_called() -> None:
    must = request(tools=[TOOL], tool_choice="required")
    assert not judge(SchemaVerifier(), answer("It is sunny."), must).accepted
    assert judge(SchemaVerifier(), answer("It is sunny."), request(tools=[TOOL])).accepted


class Child:
    """Runs code in a process of its own, as a caller of the router would."""

    async def run(self, source: str, *, seconds: float) -> CodeResult:
        def run() -> CodeResult:
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-c", source],
                    capture_output=True,
                    text=True,
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return CodeResult(False, "it took too long")
            return CodeResult(done.returncode == 0, done.stderr)

        return await asyncio.to_thread(run)


@pytest.mark.parametrize(
    ("code", "accepted", "why"),
    [
        ("```python\ndef add(a, b):\n    return a + b\n```\nThat is all.", True, "pass"),
        ("def add(a, b):\n    return a + b", True, "pass"),
        ("```python\ndef add(a, b):\n    return a - b\n```", False, "AssertionError"),
        ("I cannot do that.", False, "SyntaxError"),
        ("```python\ndef add(a, b):\n    while True: pass\n```", False, "too long"),
    ],
)
def test_tests_run_in_a_process(code: str, accepted: bool, why: str) -> None:
    verifier = TestsVerifier(Child(), "assert add(2, 3) == 5", seconds=3.0)
    verdict = judge(verifier, answer(code))
    assert verdict.accepted is accepted
    assert why in verdict.why


PASSAGES = (
    "The lighthouse of Port Elin was built in 1871 and stands 34.5 metres high.",
    "Its lamp has burned with electricity since the winter of 1926.",
)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("The lighthouse was built in 1871 [1]. Its lamp burned with electricity [2].", True),
        ("The lighthouse stands 34.5 metres high. [1]", True),
        ("The lighthouse was built in 1881 [1].", False),
        ("The lighthouse was built in 1871 [2].", False),
        ("The lighthouse was built in 1871 [3].", False),
        ("The lighthouse was built in 1871.", False),
        ("The lighthouse was built in 1871 [1]. Napoleon visited it many times.", False),
        ("", False),
    ],
)
def test_citations(text: str, accepted: bool) -> None:
    assert judge(Citations(PASSAGES), answer(text)).accepted is accepted


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("So she has 3 + 4 = 7 eggs.\n#### 18", "18"),
        ("He makes $18 every day.\nA: 18", "18"),
        ("The answer is $1,200.00.", "1200"),
        (r"Thus \boxed{42}", "42"),
        ("It takes 2 bolts and 1 bolt, together 3 bolts.", "3"),
        ("Paris.", "paris"),
        ("The answer is: Paris", "paris"),
        ("-5", "-5"),
        ("", ""),
    ],
)
def test_what_an_answer_comes_to(text: str, key: str) -> None:
    assert answer_key(text) == key


@given(st.text(max_size=300))
def test_any_text_comes_to_something(text: str) -> None:
    key = answer_key(text)
    assert agree(key, key) is bool(key)


def test_long_answers_agree_by_their_words() -> None:
    one = answer_key("The tower was built by the harbour guild to guide ships into the bay")
    assert agree(one, answer_key("The tower was built by the harbour guild to guide ships home"))
    assert not agree(one, answer_key("Nobody knows who has built the tower, nor when it was built"))


def test_agreement_asks_once_more_and_compares() -> None:
    sampled = Samples(["A: 18"])
    done = answer("#### 18")
    verdict = asyncio.run(SelfAgreement().verify(request(seed=5), done, sampled.again))
    assert verdict.accepted
    assert verdict.score == 1
    assert [(one.temperature, one.seed) for one in sampled.asked] == [(0.7, 6)]
    assert not judge(SelfAgreement(), done, None, "A: 19").accepted


def test_agreement_ends_when_the_outcome_is_sure() -> None:
    majority = SelfAgreement(samples=5, share=0.6)
    sampled = Samples(["18", "18"])
    assert asyncio.run(majority.verify(request(), answer("18"), sampled.again)).accepted
    assert len(sampled.asked) == 2
    sampled = Samples(["1", "2", "3"])
    assert not asyncio.run(majority.verify(request(), answer("18"), sampled.again)).accepted
    assert len(sampled.asked) == 3
    assert not judge(SelfAgreement(), answer("")).accepted


def tokens(*probabilities: tuple[float, float]) -> list[TokenLogprob]:
    import math

    return [
        TokenLogprob(
            token="a",
            logprob=math.log(own),
            top=[
                TopLogprob(token="a", logprob=math.log(own)),
                TopLogprob(token="b", logprob=math.log(next)),
            ],
        )
        for own, next in probabilities
    ]


def test_logprob_margin() -> None:
    sure, unsure = tokens((0.99, 0.005), (0.9, 0.05)), tokens((0.5, 0.45), (0.4, 0.39))
    assert judge(LogprobMargin(), answer("x", logprobs=sure)).accepted
    assert not judge(LogprobMargin(), answer("x", logprobs=unsure)).accepted
    assert not judge(LogprobMargin(), answer("x")).accepted
    assert LogprobMargin().asks(request()).logprobs == 2
    assert LogprobMargin().asks(request(logprobs=5)).logprobs == 5


def test_all_of_ends_at_the_first_that_rejects() -> None:
    form = request(response_format={"type": "json_object"})
    both = AllOf((SchemaVerifier(), SelfAgreement()))
    sampled = Samples(["{}"])
    assert not asyncio.run(both.verify(form, answer("no"), sampled.again)).accepted
    assert sampled.asked == []
    verdict = judge(both, answer('{"n": 5}'), form, '{"n": 5}')
    assert verdict.accepted
    assert verdict.verifier == "schema+agreement"
    assert AllOf((LogprobMargin(), SchemaVerifier())).asks(form).logprobs == 2
    assert not judge(AllOf(()), answer("x")).accepted
