"""What is seen in a request, and what is learned of how hard it is."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.inference.models import ChatRequest, Message, ToolDefinition
from uait_server_ext.routing.difficulty import SIZE, WEIGHTS, Difficulty, look

EASY = "What is the capital of France?"
SUM = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total?"
HARD = (
    "A farm has 120 hens. Each hen lays 5 eggs per week and 12 % of the eggs break. The rest is "
    "sold at $0.25 each, and every third week 40 hens less lay twice as many eggs. After 9 weeks, "
    "how much money is left if feed costs $31.50 per day? Then explain why the profit decreases."
)


def asked(text: str, **options: object) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": text}], **options})


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (EASY, "chat"),
        (SUM, "math"),
        ("Write a Python function that sorts a list.", "code"),
        ("```\nx = 1\n```\nWhat does this do?", "code"),
        ("Translate into German: good morning", "rewrite"),
        ("[1] The tower is 30 m high.\n\nHow high is the tower?", "grounded"),
        ("", "chat"),
    ],
)
def test_classes_of_tasks(text: str, task: str) -> None:
    assert look(asked(text)).task == task


def test_classes_by_what_a_request_has() -> None:
    assert look(asked(EASY, response_format={"type": "json_object"})).task == "extract"
    assert look(asked(EASY, tools=[ToolDefinition(name="f").model_dump()])).task == "tools"
    seen = Message(role="user", content=EASY, images=["data:image/png;base64,AA=="])
    assert look(ChatRequest(messages=[seen])).task == "vision"
    assert look(asked(EASY), grounded=True).task == "grounded"


def test_more_to_do_is_harder() -> None:
    difficulty = Difficulty()
    scores = [difficulty.score(look(asked(text)).features) for text in (EASY, SUM, HARD)]
    assert scores == sorted(scores)
    assert scores[0] < 0.4 < 0.6 < scores[2]


@given(st.text(max_size=3000))
def test_any_text_has_features_and_a_score(text: str) -> None:
    seen = look(asked(text))
    assert len(seen.features) == SIZE
    assert all(0 <= value < 10 for value in seen.features)
    assert 0 <= Difficulty().score(seen.features) <= 1


def test_looking_takes_no_time() -> None:
    request = asked(HARD * 100)
    began = time.perf_counter()
    for _ in range(20):
        look(request)
    assert (time.perf_counter() - began) / 20 < 0.05


def test_it_learns_what_is_hard_here() -> None:
    """A model that translates badly and computes well: the opposite of what was assumed."""
    difficulty = Difficulty()
    easy, hard = look(asked(HARD)).features, look(asked("Translate: good morning")).features
    for _ in range(60):
        difficulty.learn(hard, hard=True)
        difficulty.learn(easy, hard=False)
    assert difficulty.score(hard) > 0.8
    assert difficulty.score(easy) < 0.2


def test_it_follows_a_model_that_is_exchanged() -> None:
    difficulty = Difficulty()
    features = look(asked(SUM)).features
    for _ in range(3000):
        difficulty.learn(features, hard=True)
    for _ in range(3000):
        difficulty.learn(features, hard=False)
    assert difficulty.score(features) < 0.3


def test_it_stays_bounded_whatever_comes() -> None:
    difficulty, chance = Difficulty(), random.Random(1)
    size = len(difficulty.dump())
    for _ in range(5000):
        features = [chance.random() * 3 for _ in WEIGHTS]
        difficulty.learn(features, hard=chance.random() < 0.5)
    assert len(difficulty.dump()) == size < 10_000
    assert 0 <= difficulty.score([1.0] * SIZE) <= 1


def test_what_was_learned_is_kept() -> None:
    difficulty = Difficulty()
    features = look(asked(SUM)).features
    for _ in range(20):
        difficulty.learn(features, hard=True)
    again = Difficulty()
    assert again.load(difficulty.dump())
    assert again.score(features) == difficulty.score(features)
    assert again.seen == 20
    assert not again.load(b"another version")
    assert not again.load(json.dumps([]).encode())
