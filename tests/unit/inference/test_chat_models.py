"""The embedded chat model on both backends: streams, cancels, remembers, refuses, survives."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.unit.inference.real import RealModels, real_models, request_of
from uait_server_ext.errors import ContextTooLong, WorkerDied
from uait_server_ext.inference import machine
from uait_server_ext.inference.models import TextDelta

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"
# about 1,000 tokens, as a grounded question has
PASSAGES = " ".join(
    f"Section {n}: the lighthouse of Port {n} was built in {1800 + n} and is {n + 10} metres high."
    for n in range(40)
)
FIRST_TOKEN_SECONDS = 10.0


@pytest.fixture(scope="module", params=["mlx", "llamacpp"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not machine.has_module({"mlx": "mlx_lm", "llamacpp": "xllamacpp"}[name]):
        pytest.skip(f"the {name} backend is not installed here")
    return name


@pytest.fixture(scope="module")
def model(backend: str) -> str:
    return f"{MODEL}@{backend}"


@pytest.fixture(scope="module")
def real(model_cache: Path, backend: str) -> Iterator[RealModels]:
    with real_models(model_cache) as models:
        yield models


def test_it_knows_the_capital_of_france_and_streams(
    real: RealModels, model: str, backend: str
) -> None:
    done, pieces = real.ask("What is the capital of France?", model)
    assert "Paris" in done.text
    assert "".join(pieces) == done.text
    assert len(pieces) > 3
    assert (done.model, done.backend, done.finish_reason) == (MODEL, backend, "stop")
    assert done.usage.prompt_tokens == 37
    assert done.usage.completion_tokens == 8


def test_it_finds_an_answer_in_a_passage(real: RealModels, model: str) -> None:
    passage = "The bridge was opened in 1932 and has a span of 503 metres."
    done, _ = real.ask(f"Passage: {passage}\nQuestion: When was the bridge opened?", model)
    assert "1932" in done.text


def test_text_beyond_ascii_comes_whole(real: RealModels, model: str) -> None:
    done, pieces = real.ask("Repeat exactly: «Žluťoučký kůň – 東京 😀»", model, max_tokens=40)
    assert "�" not in done.text
    assert "".join(pieces) == done.text


def test_max_tokens_and_stop_strings(real: RealModels, model: str) -> None:
    done, _ = real.ask("Count from one to twenty.", model, max_tokens=5)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 5)
    done, _ = real.ask("What is the capital of France?", model, stop=["France"])
    assert (done.finish_reason, done.text) == ("stop", "The capital of ")


def test_a_seed_repeats_a_sampled_answer(real: RealModels, model: str) -> None:
    def sample(seed: int) -> str:
        done, _ = real.ask(
            "Write a sentence about the sea.", model, temperature=1.5, seed=seed, max_tokens=24
        )
        return done.text

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    real: RealModels, model: str
) -> None:
    with pytest.raises(ContextTooLong, match="8,192") as caught:
        real.ask("word " * 9_000, model)
    assert caught.value.extensions["prompt_tokens"] > 9_000
    assert caught.value.extensions["context_tokens"] == 8_192
    with pytest.raises(ContextTooLong):
        real.ask("short", model, max_tokens=8_192)


def test_the_first_word_over_a_thousand_tokens_comes_in_time(
    real: RealModels, model: str, backend: str
) -> None:
    """Ten seconds on two cores; counted in processor time, so that neighbours do not matter."""
    real.ask("warm", model, max_tokens=1)
    passages = f"{secrets.token_hex(8)} {PASSAGES}"  # such as no cache on the disk has
    worker = real.worker()
    before = worker.cpu_times()
    done, _ = real.ask(f"{passages}\nHow high is the lighthouse of Port 7?", model, max_tokens=1)
    after = worker.cpu_times()
    assert 900 < done.usage.prompt_tokens < 1_300
    assert done.usage.cached_tokens < 100
    used = (after.user - before.user + after.system - before.system) / min(2, machine.cores())
    assert min(done.first_token_seconds, used) < FIRST_TOKEN_SECONDS

    # the same passages again: what both prompts share is not read twice
    again, _ = real.ask(f"{passages}\nWhen was the one of Port 9 built?", model, max_tokens=1)
    assert again.usage.cached_tokens > 1000  # what was read is not read again


def test_cancelling_in_the_prompt_or_in_the_answer_frees_the_model(
    real: RealModels, model: str
) -> None:
    real.ask("warm", model, max_tokens=1)
    worker = real.worker()

    async def in_the_prompt() -> float:
        request = request_of("Numbers: " + " ".join(map(str, range(1500))), model)
        stream = real.inference.chat(request)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.5)
        assert not reading.done()
        began = time.monotonic()
        reading.cancel()
        await asyncio.wait([reading])
        return time.monotonic() - began

    async def in_the_answer() -> float:
        request = request_of("Tell a long story about a ship.", model, max_tokens=500)
        async with aclosing(real.inference.chat(request)) as stream:
            assert isinstance(await anext(stream), TextDelta)
            began = time.monotonic()
        return time.monotonic() - began

    assert real.portal.call(in_the_prompt) < 2
    assert real.portal.call(in_the_answer) < 2
    done, _ = real.ask("What is the capital of France?", model)
    assert "Paris" in done.text
    assert real.worker().pid == worker.pid


def test_a_killed_worker_fails_clearly_and_the_next_question_works(
    real: RealModels, model: str
) -> None:
    async def killed() -> None:
        stream = real.inference.chat(request_of("Tell a long story.", model, max_tokens=500))
        await anext(stream)
        real.worker().send_signal(signal.SIGKILL)
        async for _ in stream:
            pass

    with pytest.raises(WorkerDied, match="SIGKILL"):
        real.portal.call(killed)
    done, _ = real.ask("What is the capital of France?", model)
    assert "Paris" in done.text


def test_nothing_of_the_worker_can_be_connected_to(real: RealModels, model: str) -> None:
    """llama.cpp's server object opens an HTTP server; nobody may reach it."""
    real.ask("warm", model, max_tokens=1)
    worker = real.worker()
    assert not [c for c in worker.net_connections("inet") if c.status == "LISTEN"]
    paths = [str(c.laddr) for c in worker.net_connections("unix") if c.laddr]
    assert not [path for path in paths if Path(path).exists()]
