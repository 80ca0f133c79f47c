"""The llama.cpp backend with the embedded model: streams side by side, and what it refuses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.inference.driving import Driver, asking, going_on
from uait_server_ext.errors import ContextTooLong, InvalidInput
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.constraint import grammar_of
from uait_server_ext.inference.models import ChatRequest, JsonSchema, Message, Regex

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"
CONTEXT = 1536  # so that the attention cache is soon full
CAPITAL = "What is the capital of France?"
QUESTIONS = [CAPITAL, "What is the capital of Italy?", "Name a colour.", "Count to five."]
PASSAGES = " ".join(f"Port {n} has a lighthouse of {n + 10} metres." for n in range(20))


@pytest.fixture(scope="module")
def backend(model_cache: Path) -> Iterator[Any]:
    if not machine.has_module("xllamacpp"):
        pytest.skip("llama.cpp is not installed here")
    from uait_server_ext.inference.backends import llamacpp

    entry = Catalogue.load().get(MODEL).model_copy(update={"context_tokens": CONTEXT})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llamacpp, "POOL_TOKENS", CONTEXT)
        yield llamacpp.LlamaCppChat(entry, ModelCache(model_cache), 2, streams=4)


@pytest.fixture
def driver(backend: Any) -> Driver:
    found = Driver(backend)
    found.until(lambda: not backend.busy)
    return found


def held(wanted: JsonSchema | Regex) -> Any:
    """Return the grammar of an answer."""
    messages = [Message(role="user", content="x")]
    return grammar_of(ChatRequest(messages=messages, response_format=wanted))


def test_streams_run_side_by_side_and_say_what_each_says_alone(driver: Driver) -> None:
    requests = [asking(text, max_tokens=16) for text in QUESTIONS]
    alone = [driver.run(request)[0] for request in requests]
    assert alone[0].text == "The capital of France is Paris."
    numbers = [driver.start(request) for request in requests]
    driver.until(lambda: all(driver.said[n].text or driver.said[n].outcome for n in numbers))
    assert sum(driver.said[number].outcome is None for number in numbers) > 1
    driver.until(lambda: not driver.backend.busy)
    assert driver.said[numbers[0]].text == alone[0].text
    for number in numbers:
        outcome = driver.said[number].outcome
        assert outcome is not None
        assert outcome.completion_tokens > 1


def test_a_cancel_is_heard_within_a_tenth_of_a_second(driver: Driver) -> None:
    """Ten times that where the machine is busy; also while a prompt is read."""
    reading = driver.start(asking(" ".join(map(str, range(300)))))
    telling = driver.start(asking("Tell a long story.", max_tokens=400))
    driver.step()
    for number in (reading, telling):
        driver.backend.cancel(number)
        began = time.monotonic()
        driver.step()
        assert driver.said[number].reason == "cancelled"
        assert time.monotonic() - began < 1
    assert driver.run(asking(CAPITAL))[0].text == "The capital of France is Paris."


def test_a_seed_repeats_exactly_whoever_else_asks(driver: Driver) -> None:
    drawn = asking("Write about the sea.", temperature=1.5, seed=2**40 + 1, max_tokens=12)
    (alone,) = driver.run(drawn)
    among = driver.run(asking(CAPITAL), drawn, asking(QUESTIONS[2]))
    assert among[1].text == alone.text
    other = asking("Write about the sea.", temperature=1.5, seed=5, max_tokens=12)
    assert driver.run(other)[0].text != alone.text


def test_logprobs_are_told_with_as_many_alternatives_as_asked_for(driver: Driver) -> None:
    for alternatives in (0, 3):
        (said,) = driver.run(asking(CAPITAL, logprobs=alternatives))
        assert "".join(said.tokens) == said.text
        assert all(len(token.top) == alternatives for token in said.logprobs)
        assert all(token.logprob <= 0 for token in said.logprobs)


def test_what_prompts_share_is_not_read_again(driver: Driver) -> None:
    (first,) = driver.run(asking(f"{PASSAGES} How high is the first?", max_tokens=2))
    (second,) = driver.run(asking(f"{PASSAGES} How high is the last?", max_tokens=2))
    assert first.cached < 60
    assert second.cached > 200


def test_answers_keep_to_a_form_and_come_to_an_end_within_their_tokens(driver: Driver) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "sights": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        },
        "required": ["city", "sights"],
        "additionalProperties": False,
    }
    grammar = held(JsonSchema(json_schema=schema))
    ask = "Describe Paris and all its sights at length, in JSON."
    for tokens in (200, 30):
        (said,) = driver.run(asking(ask, grammar=grammar, max_tokens=tokens))
        assert said.error is None
        value = json.loads(said.text)
        assert set(value) == {"city", "sights"}
        assert len(value["sights"]) >= 2
    dates = held(Regex(pattern="[0-9]{4}-[0-9]{2}"))
    for said in driver.run(*[asking("When?", grammar=dates, temperature=1.0)] * 3):
        assert len(said.text) == 7
        assert said.text[4] == "-"


def test_penalties_and_a_raw_text(driver: Driver) -> None:
    again = "Say the word 'tea' twenty times: tea tea tea"
    (plain,) = driver.run(asking(again, max_tokens=24, logprobs=0))
    (punished,) = driver.run(
        asking(again, max_tokens=24, logprobs=0, presence_penalty=2, frequency_penalty=2)
    )
    assert punished.tokens != plain.tokens
    (said,) = driver.run(going_on("The capital of France is", max_tokens=3))
    assert said.text.startswith(" Paris")


def test_what_cannot_be_is_refused_before_anything_is_made(driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="@mlx"):
        driver.start(asking("x", adapter=tmp_path))
    with pytest.raises(ContextTooLong):
        driver.start(asking("word " * 9000))
    assert not driver.backend.busy


def test_more_prompts_than_the_attention_cache_holds(driver: Driver) -> None:
    """Idle slots give their room to those who need it, and who needs more waits; nobody fails."""
    said = driver.run(
        *[asking(" ".join(str(n * 100 + at) for at in range(70)), max_tokens=2) for n in range(6)]
    )
    assert [one.error for one in said] == [None] * 6
    assert sum(one.outcome.prompt_tokens for one in said if one.outcome) > CONTEXT
