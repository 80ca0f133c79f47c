"""Several requests at one model: all served at once, each with its own end, memory shared."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import psutil
import pytest

from tests.unit.inference.test_worker import LONG, answer, asked, first_word, run, workers
from uait_server_ext.errors import (
    Busy,
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    UaitError,
    WorkerDied,
)
from uait_server_ext.inference import process as process_module
from uait_server_ext.inference.models import CompletionRequest, TextDelta, ToolDefinition
from uait_server_ext.inference.service import Inference
from uait_server_ext.inference.tally import ModelStatistics

BuildEcho = Callable[..., Inference]
WORDS = " ".join(f"w{n}" for n in range(20))


def statistics_of(inference: Inference, model: str) -> ModelStatistics:
    (found,) = [known for known in inference.statistics() if known.model == model]
    return found


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of another process, which sets no event
            await asyncio.sleep(0.005)


def test_many_answers_at_once_come_whole_and_sooner(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        assert statistics_of(inference, "slow").slots == 8
        began = time.monotonic()
        texts = [f"{n} {WORDS}" for n in range(24)]
        made = await asyncio.gather(*(answer(inference, asked(t, "slow")) for t in texts))
        assert [done.text for done in made] == texts
        assert time.monotonic() - began < 24 * 21 * 0.05 / 2  # in turn it takes twice that
        known = statistics_of(inference, "slow")
        assert (known.tally.requests, known.tally.failures) == (25, 0)
        assert known.tally.completion_tokens == 1 + 24 * 21
        assert (known.under_way, known.waiting) == (0, 0)
        assert known.tally.tokens_per_second

    run(echo_inference, test, queue_limit=24)


def test_the_queue_is_shared_by_caller(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        ended: list[str] = []

        async def ask(caller: str) -> None:
            async for _ in inference.chat(asked("one", "slow"), caller=caller):
                pass
            ended.append(caller)

        flood = [asyncio.create_task(ask("flood")) for _ in range(10)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(name)) for name in ("ann", "bob")]
        await asyncio.gather(*flood, *others)
        assert ended.index("bob") <= 4

    run(echo_inference, test, streams=1)


def test_a_flood_gives_way_in_a_full_queue(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))

        async def ask(caller: str) -> str:
            async for event in inference.chat(asked("one two", "slow"), caller=caller):
                if not isinstance(event, TextDelta):
                    return event.text
            raise AssertionError

        flood = [asyncio.create_task(ask("flood")) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert await ask("ann") == "one two"
        ended = await asyncio.gather(*flood, return_exceptions=True)
        assert [type(end) for end in ended] == [str, str, str, str, Busy]

    run(echo_inference, test, streams=1, queue_limit=4)


def test_raw_completions_go_on_with_a_text(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        request = CompletionRequest(prompt="to be or", max_tokens=2)
        events = [event async for event in inference.complete(request)]
        assert "".join(e.text for e in events[:-1]) == events[-1].text == "to be"

    run(echo_inference, test)


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": 1},
        {"tools": [ToolDefinition(name="clock")]},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required"},
    ],
)
def test_what_a_backend_cannot_honour_is_refused(
    echo_inference: BuildEcho, more: dict[str, Any]
) -> None:
    async def test(inference: Inference) -> None:
        with pytest.raises(InvalidInput):
            await answer(inference, asked("x", **more))
        assert (await answer(inference, asked("still there"))).text == "still there"
        assert statistics_of(inference, "echo").tally.failures == 0

    run(echo_inference, test)


def test_a_deadline_ends_an_answer_and_frees_its_place(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        pieces: list[str] = []

        async def read() -> None:
            async for event in inference.chat(asked(LONG, "slow", deadline_seconds=0.4)):
                pieces.append(event.text)

        with pytest.raises(DeadlineExceeded, match=r"within the 0\.4 s"):
            await read()
        assert pieces
        assert LONG.startswith("".join(pieces))
        await until(lambda: statistics_of(inference, "slow").under_way == 0)
        assert (await answer(inference, asked("next", "slow"))).text == "next"

    run(echo_inference, test, streams=1)


def test_a_deadline_holds_in_the_queue(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        async with aclosing(inference.chat(asked(LONG, "slow"))) as first:
            await first_word(first)
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await answer(inference, asked("x", "slow", deadline_seconds=0.2))
            assert time.monotonic() - began < 2
            assert statistics_of(inference, "slow").waiting == 0
            assert isinstance(await anext(first), TextDelta)

    run(echo_inference, test, streams=1)


def test_a_deadline_holds_while_the_model_loads(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        with pytest.raises(DeadlineExceeded):
            await answer(inference, asked("x", deadline_seconds=0.001))
        assert (await answer(inference, asked("the load went on"))).text == "the load went on"
        assert statistics_of(inference, "echo").tally.loads == 1

    run(echo_inference, test)


def test_a_reader_who_stalls_keeps_nobody_waiting(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        async with aclosing(inference.chat(asked(WORDS, "slow"))) as stalled:
            await first_word(stalled)
            assert (await answer(inference, asked("next", "slow"))).text == "next"
            rest = [event async for event in stalled]
            assert rest[-1].text == WORDS

    run(echo_inference, test, streams=1)


def test_a_stalled_reader_hears_of_its_deadline(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        stream = inference.chat(asked(LONG, "slow", deadline_seconds=0.3))
        await first_word(stream)
        await until(lambda: statistics_of(inference, "slow").under_way == 0)
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:
                pass

    run(echo_inference, test, streams=1)


def test_cancelled_streams_leave_the_others_alone(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        kept = [asyncio.create_task(answer(inference, asked(WORDS, "slow"))) for _ in range(4)]
        doomed = [asyncio.create_task(answer(inference, asked(LONG, "slow"))) for _ in range(4)]
        await asyncio.sleep(0.2)
        for task in doomed:
            task.cancel()
        began = time.monotonic()
        await until(lambda: statistics_of(inference, "slow").under_way == 4)
        assert time.monotonic() - began < 1
        assert [done.text for done in await asyncio.gather(*kept)] == [WORDS] * 4

    run(echo_inference, test)


def test_a_killed_worker_fails_all_its_requests_and_those_in_line_go_on(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        (worker,) = workers()
        under_way = [
            asyncio.create_task(answer(inference, asked(f"{n} {LONG}", "slow"))) for n in range(8)
        ]
        in_line = [asyncio.create_task(answer(inference, asked(f"{n}", "slow"))) for n in range(3)]
        await asyncio.sleep(0.2)
        worker.send_signal(signal.SIGKILL)
        ended = await asyncio.gather(*under_way, return_exceptions=True)
        assert [type(end) for end in ended] == [WorkerDied] * 8
        assert [done.text for done in await asyncio.gather(*in_line)] == ["0", "1", "2"]
        assert len(workers()) == 1
        assert statistics_of(inference, "slow").tally.failures == 8
        assert statistics_of(inference, "slow").tally.loads == 2

    run(echo_inference, test)


def test_a_worker_that_gives_no_sign_is_ended(
    echo_inference: BuildEcho, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "SILENT_SECONDS", 3.0)

    async def test(inference: Inference) -> None:
        # a pause of five seconds before each word: silent, but for its signs of life
        assert (await answer(inference, asked("patience", "slow"))).text == "patience"
        (worker,) = workers()
        task = asyncio.create_task(answer(inference, asked("more patience", "slow")))
        await asyncio.sleep(0.5)
        worker.send_signal(signal.SIGSTOP)
        with pytest.raises(WorkerDied, match="gave no sign for 3 s"):
            await task

    run(echo_inference, test, delay=5.0)


def test_an_idle_model_is_put_away_and_a_busy_one_is_not(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        done = await answer(inference, asked(WORDS, "slow"))  # takes longer than the keep-alive
        assert done.text == WORDS
        assert workers()
        await until(lambda: statistics_of(inference, "slow").loaded_bytes == 0)
        assert not workers()
        assert (await answer(inference, asked("again", "slow"))).text == "again"
        assert statistics_of(inference, "slow").tally.loads == 2

    run(echo_inference, test, keep_alive=0.4)


def test_a_model_gives_way_to_another_when_it_is_idle(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        slow = asyncio.create_task(answer(inference, asked(WORDS, "slow")))
        await until(lambda: bool(workers()))
        large = asyncio.create_task(answer(inference, asked("two", "large")))
        assert (await slow).text == WORDS  # with its request under way it stays
        assert (await large).text == "two"
        states = {info.id: info for info in await inference.models()}
        assert (states["slow"].state, states["slow"].loaded_bytes) == ("pulled", 0)
        assert (states["large"].state, states["large"].loaded_bytes) == ("loaded", 1_000_000_000)
        assert len(workers()) == 1

    run(echo_inference, test, memory_budget=1_500_000_000)


def test_a_model_over_the_budget_says_so(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        with pytest.raises(ModelUnavailable, match=r"large needs 1\.0 GB.*0\.5 GB"):
            await answer(inference, asked("x", "large"))
        with pytest.raises(ModelUnavailable, match="memory_budget"):
            await inference.load("large")
        assert not workers()

    run(echo_inference, test, memory_budget=500_000_000)


def test_load_and_unload(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await inference.load("slow")
        (worker,) = workers()
        assert statistics_of(inference, "slow").loaded_bytes == 1_000_000_000
        await inference.load("slow")
        assert workers() == [worker]
        await inference.unload("slow")
        assert not workers()
        assert statistics_of(inference, "slow").loaded_bytes == 0

    run(echo_inference, test)


def test_a_worker_without_memory_fails_clearly(echo_inference: BuildEcho) -> None:
    """Whatever it cannot have memory for, each request ends, and the next one works."""

    async def attempt(what: Awaitable[object]) -> None:
        with contextlib.suppress(UaitError):
            await what

    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        (worker,) = workers()
        worker.rlimit(psutil.RLIMIT_AS, (1, 1))
        async with asyncio.timeout(20):
            big = [asked("x" * 4_000_000, "slow"), asked("one two", "slow")]
            await asyncio.gather(*(attempt(answer(inference, request)) for request in big))
        if worker.is_running():  # what it had was enough
            worker.kill()
            await asyncio.to_thread(worker.wait)
        assert (await answer(inference, asked("again", "slow"))).text == "again"

    run(echo_inference, test)
