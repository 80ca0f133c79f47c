"""Kept answers: whose they are, what counts as equal, and that they are bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.routing.world import ADA, BEN, World, ask, run
from uait_server_ext.inference.models import EmbedPurpose, Message
from uait_server_ext.routing.answers_file import AnswersFile
from uait_server_ext.routing.cache import AnswerCache, Kept, marks
from uait_server_ext.routing.config import CacheEntry
from uait_server_ext.routing.models import Decision, RoutedDone

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors

GREEDY: dict[str, Any] = {"temperature": 0.0}


class LetterEmbedder:
    """Embeds a text as how often each letter is in it."""

    id = "letters"
    dimension = 26

    async def embed(self, texts: Sequence[str], *, purpose: EmbedPurpose) -> Vectors:
        counts = [[text.lower().count(chr(97 + n)) + 1e-6 for n in range(26)] for text in texts]
        vectors = np.array(counts, dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class Hand:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def cached(
    disk: Kept | None = None, clock: Callable[[], float] | None = None, **entry: object
) -> World:
    world = World("one", rest="\n[failover]\nlocal = false\n")
    made = CacheEntry.model_validate(entry or {"exact": True})
    world.options = {
        "cache": AnswerCache(made, LetterEmbedder(), disk, salt="s", clock=clock or Hand())
    }
    return world


def test_an_equal_greedy_request_is_answered_from_the_cache_at_no_cost() -> None:
    async def go() -> None:
        async with cached() as world:
            first = await world.ask(ask(**GREEDY))
            assert first.decision.cache == "miss"
            events = await world.events(ask(**GREEDY))
            second = events[-1]
            assert isinstance(second, RoutedDone)
            assert second.text == first.text
            assert second.usage == first.usage
            assert (second.decision.cache, second.decision.cost_usd) == ("exact", 0.0)
            assert second.decision.tried == []
            assert len(world.mocks["one"].calls) == 1
            seeded = ask(seed=7)
            await world.ask(seeded)
            assert (await world.ask(seeded)).decision.cache == "exact"

    run(go())


def test_nobody_gets_what_was_anothers() -> None:
    async def go() -> None:
        async with cached(exact=True, semantic=True) as world:
            await world.ask(ask(**GREEDY))
            for caller in (BEN, replace(ADA, reach="private")):
                done = await world.ask(ask(**GREEDY), caller)
                assert done.decision.cache == "miss"
            assert len(world.mocks["one"].calls) == 3

    run(go())


def test_what_another_call_might_answer_otherwise_is_not_kept() -> None:
    async def go() -> None:
        async with cached() as world:
            for _ in range(2):
                assert (await world.ask(ask())).decision.cache == "off"
            for change in ({"max_tokens": 5}, {"stop": ["x"]}, {"model": "one/m"}):
                assert (await world.ask(ask(**(GREEDY | change)))).decision.cache == "miss"

    run(go())


def test_a_kept_answer_expires() -> None:
    async def go() -> None:
        clock = Hand()
        async with cached(clock=clock, exact=True, seconds=10) as world:
            await world.ask(ask(**GREEDY))
            clock.at += 11
            assert (await world.ask(ask(**GREEDY))).decision.cache == "miss"

    run(go())


def test_a_nearly_equal_question_is_answered_where_that_is_wanted() -> None:
    async def go() -> None:
        async with cached(exact=True, semantic=True, threshold=0.97) as world:
            await world.ask(ask("How long is the coast of Norway?", **GREEDY))
            near = await world.ask(ask("how long is the coast of Norway", **GREEDY))
            assert near.decision.cache == "semantic"
            far = await world.ask(ask("Who wrote Faust?", **GREEDY))
            assert far.decision.cache == "miss"
        async with cached(exact=True, semantic=True, threshold=0.9) as world:
            await world.ask(ask("What is 2 + 2, exactly?", **GREEDY))
            for other in ("What is 2 + 3, exactly?", "What is not 2 + 2, exactly?"):
                assert (await world.ask(ask(other, **GREEDY))).decision.cache == "miss"
            framed = ask("What is 2 + 2, exactly", **GREEDY)
            system = Message(role="system", content="You are a pirate.")
            other_frame = framed.model_copy(update={"messages": [system, *framed.messages]})
            assert (await world.ask(other_frame)).decision.cache == "miss"
            assert (await world.ask(framed)).decision.cache == "semantic"

    run(go())


def test_marks_are_numbers_and_negations() -> None:
    assert marks("Not 2, nor 3.5. Isn't it?") == ("not", "2", "3.5", "n't")
    assert marks("plain words") == ()


def test_a_degraded_answer_is_not_kept() -> None:
    async def go() -> None:
        world = World("one")
        world.options = {"cache": AnswerCache(CacheEntry(exact=True))}
        async with world:
            world.mocks["one"].usual = "500"
            assert (await world.ask(ask(**GREEDY))).decision.degraded
            world.mocks["one"].usual = "ok"
            done = await world.ask(ask(**GREEDY))
            assert done.decision.cache == "miss"
            assert done.decision.provider == "one"

    run(go())


def test_answers_on_disk_outlive_the_process(tmp_path: Path) -> None:
    async def go() -> None:
        for expected in ("miss", "exact"):
            disk = AnswersFile(tmp_path / "answers.db", 100)
            async with cached(disk, time.time, exact=True, on_disk=True) as world:
                assert (await world.ask(ask(**GREEDY))).decision.cache == expected
            disk.close()

    run(go())
    assert (tmp_path / "answers.db").stat().st_mode & 0o077 == 0


def test_the_file_is_trimmed(tmp_path: Path) -> None:
    async def go() -> None:
        disk = AnswersFile(tmp_path / "answers.db", 10)
        for number in range(200):
            await disk.put(f"k{number}", b"x", 1e12 + number)
        assert await disk.get("k0") is None
        assert await disk.get("k199") == b"x"
        await disk.put("old", b"x", 1.0)
        assert await disk.get("old") is None
        disk.close()

    run(go())


def done(text: str) -> RoutedDone:
    decision = Decision(tier="t", provider="p", model="m", why="w")
    return RoutedDone.model_validate(
        {
            "text": text,
            "model": "m",
            "backend": "b",
            "finish_reason": "stop",
            "usage": {},
            "first_token_seconds": 0.0,
            "seconds": 0.0,
            "decision": decision,
        }
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000)), max_size=60))
@pytest.mark.parametrize("semantic", [False, True])
def test_it_never_grows_beyond_its_bounds(semantic: bool, puts: list[tuple[int, int]]) -> None:
    async def go() -> None:
        entry = CacheEntry(exact=True, semantic=semantic, entries=10, megabytes=0.02)
        cache = AnswerCache(entry, LetterEmbedder())
        for number, size in puts:
            request = ask(f"question {number}", **GREEDY)
            await cache.put(request, ADA, cache.key(request, ADA), done("x" * size))
            assert len(cache) <= 10
            assert 0 <= cache.size <= 20_000
            assert sum(len(keys) for keys in cache._frames.values()) <= len(cache)
            assert cache.size == sum(one.size for one in cache._entries.values())

    run(go())
