"""A worker process and the service over it, with the echo backend: every way it can end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from uait_server_ext.errors import (
    Busy,
    ContextTooLong,
    ModelNotFound,
    ModelUnavailable,
    WorkerDied,
)
from uait_server_ext.inference import choice
from uait_server_ext.inference import runner as runner_module
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.models import ChatDone, ChatRequest, Message, TextDelta
from uait_server_ext.inference.process import WorkerProcess
from uait_server_ext.inference.service import Inference

BuildEcho = Callable[..., Inference]
LONG = " ".join(f"word{n}" for n in range(400))


def asked(text: str, model: str = "auto", **more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text)], model=model, **more)


async def answer(inference: Inference, request: ChatRequest) -> ChatDone:
    """Return the last event, having checked that the deltas make up its text."""
    text = ""
    async for event in inference.chat(request):
        if isinstance(event, TextDelta):
            text += event.text
        else:
            assert event.text == text
            return event
    raise AssertionError("the stream ended without a done event")


async def first_word(stream: AsyncIterator[Any]) -> None:
    assert isinstance(await anext(stream), TextDelta)


def workers() -> list[psutil.Process]:
    """All model workers below this process."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ended this moment
            if "inference.worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def started() -> None:
    """Wait until a worker process exists."""
    while not workers():  # noqa: ASYNC110 - the operating system sets no event
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running(inference: Inference) -> AsyncIterator[Inference]:
    await inference.start()
    try:
        yield inference
    finally:
        await inference.stop()
        assert not workers()


def run(build: BuildEcho, test: Callable[[Inference], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with running(build(**options)) as inference:
            await test(inference)

    asyncio.run(main())


def test_an_answer_streams_and_ends_with_usage(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        done = await answer(inference, asked("one  two\nthree "))
        assert done.text == "one  two\nthree "
        assert (done.model, done.backend, done.finish_reason) == ("echo", "echo", "stop")
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 3)
        assert 0 < done.first_token_seconds <= done.seconds

    run(echo_inference, test)


def test_max_tokens_and_stop_strings_end_an_answer(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        short = await answer(inference, asked("one two three", max_tokens=2))
        assert (short.text, short.finish_reason) == ("one two", "length")
        stopped = await answer(inference, asked("one two three", stop=["o t"]))
        assert (stopped.text, stopped.finish_reason) == ("one tw", "stop")
        empty = await answer(inference, asked("   "))
        assert (empty.text, empty.usage.completion_tokens) == ("", 0)

    run(echo_inference, test)


def test_an_unknown_model_or_backend_is_refused_before_anything_starts(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        with pytest.raises(ModelNotFound, match="no model 'nope'"):
            await answer(inference, asked("x", "nope"))
        with pytest.raises(ModelNotFound, match="It runs on: mlx, llamacpp"):
            await answer(inference, asked("x", "smollm2-135m-instruct@echo"))
        with pytest.raises(ModelNotFound, match="is no chat model"):
            await answer(inference, asked("x", "all-minilm-l6-v2"))
        assert not workers()

    run(echo_inference, test)


def test_a_prompt_over_the_context_names_both_numbers(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        with pytest.raises(ContextTooLong, match=r"5,000 tokens.* 256: .*4,096") as caught:
            await answer(inference, asked("x " * 5000))
        assert caught.value.extensions["prompt_tokens"] == 5000
        await answer(inference, asked("still there"))

    run(echo_inference, test)


def test_closing_the_stream_stops_the_worker_at_once(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        async with aclosing(inference.chat(asked(LONG, "slow"))) as stream:
            await first_word(stream)
            began = time.monotonic()
        assert time.monotonic() - began < 0.3
        began = time.monotonic()
        await answer(inference, asked("next", "slow"))
        assert time.monotonic() - began < 1

    run(echo_inference, test)


def test_a_cancelled_task_stops_the_worker_and_the_queue_moves_on(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        running_ = asyncio.create_task(answer(inference, asked(LONG, "slow")))
        queued = asyncio.create_task(answer(inference, asked(LONG, "slow")))
        last = asyncio.create_task(answer(inference, asked("last", "slow")))
        await asyncio.sleep(0.2)
        queued.cancel()
        running_.cancel()
        async with asyncio.timeout(2):
            assert (await last).text == "last"
        assert [task.cancelled() for task in (running_, queued)] == [True, True]

    run(echo_inference, test, streams=1)


def test_a_full_queue_says_busy(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm", "slow"))
        tasks = [asyncio.create_task(answer(inference, asked(LONG, "slow"))) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(Busy, match="Try again in about") as caught:
            await answer(inference, asked("one too many", "slow"))
        assert caught.value.extensions["retry_after"] >= 1
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run(echo_inference, test, queue_limit=2, streams=1)


def test_a_killed_worker_fails_clearly_and_the_next_question_works(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        stream = inference.chat(asked(LONG, "slow"))
        await first_word(stream)
        (worker,) = workers()
        worker.send_signal(signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"middle of the answer: signal SIGKILL.*Ask again"):
            async for _ in stream:
                pass
        assert (await answer(inference, asked("again", "slow"))).text == "again"
        assert workers()[0].pid != worker.pid

    run(echo_inference, test)


def test_a_stuck_worker_is_ended_when_its_request_is_cancelled(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        stream = inference.chat(asked(LONG, "slow"))
        await first_word(stream)
        (worker,) = workers()
        worker.send_signal(signal.SIGSTOP)
        await stream.aclose()
        async with asyncio.timeout(10):
            await asyncio.to_thread(worker.wait)
        assert (await answer(inference, asked("again", "slow"))).text == "again"

    run(echo_inference, test)


def test_stopping_ends_children_within_two_seconds_and_fails_requests(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        await answer(inference, asked("warm"))
        under_way = asyncio.create_task(answer(inference, asked(LONG, "slow")))
        waiting = asyncio.create_task(answer(inference, asked(LONG, "slow")))
        await asyncio.sleep(0.8)
        began = time.monotonic()
        await inference.stop()
        assert time.monotonic() - began < 2
        assert not workers()
        for task in (under_way, waiting):
            with pytest.raises(ModelUnavailable, match="stopping"):
                await task
        with pytest.raises(ModelUnavailable, match="stop"):
            await answer(inference, asked("late"))

    run(echo_inference, test, streams=1)


def test_stopping_while_a_model_loads_leaves_no_process(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        task = asyncio.create_task(answer(inference, asked("x")))
        await started()
        await inference.stop()
        assert not workers()
        with pytest.raises(ModelUnavailable, match="stopping"):
            await task

    run(echo_inference, test)


def test_a_caller_that_leaves_during_the_load_does_not_stop_it(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        task = asyncio.create_task(answer(inference, asked("x")))
        await started()
        (worker,) = workers()
        task.cancel()
        await asyncio.wait([task])
        assert (await answer(inference, asked("y"))).text == "y"
        assert workers() == [worker]

    run(echo_inference, test)


def test_unloading_waits_for_the_answer_and_gives_the_process_back(
    echo_inference: BuildEcho,
) -> None:
    async def test(inference: Inference) -> None:
        task = asyncio.create_task(answer(inference, asked("one two three", "slow")))
        await started()
        await inference.unload("slow")
        assert not workers()
        assert (await task).text == "one two three"
        assert (await answer(inference, asked("again", "slow"))).text == "again"

    run(echo_inference, test)


def test_the_worker_s_environment_holds_no_secret(
    echo_inference: BuildEcho, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_TOKEN", "secret-1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    monkeypatch.setenv("HF_TOKEN", "secret-3")

    async def test(inference: Inference) -> None:
        await answer(inference, asked("x"))
        environment = workers()[0].environ()
        assert not [value for value in environment.values() if "secret" in value]
        assert environment["HF_HUB_OFFLINE"] == "1"

    run(echo_inference, test)


def test_the_event_loop_stays_free(echo_inference: BuildEcho) -> None:
    """Catalogue, load and answers: no step keeps the loop from its other work."""
    gaps: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - before - 0.001)

    async def test(inference: Inference) -> None:
        watcher = asyncio.create_task(watch())
        await inference.models()
        for n in range(2):
            await answer(inference, asked(f"{n} {LONG}", max_tokens=200))
        watcher.cancel()

    run(echo_inference, test)
    gaps.sort()
    assert gaps[int(len(gaps) * 0.9)] < 0.02


def test_a_load_that_fails_says_why_and_is_not_tried_at_once_again(
    echo_inference: BuildEcho, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "BACKOFF_SECONDS", (0.0, 0.5))

    async def test(inference: Inference) -> None:
        monkeypatch.setitem(choice.BACKENDS, "echo", ("no-backend",))
        for expected in ("could not be loaded: KeyError: 'no-backend'", "It failed 1 times"):
            with pytest.raises(ModelUnavailable, match=expected):
                await answer(inference, asked("x"))
        state = {info.id: info for info in await inference.models()}["echo"]
        assert state.state == "failed"
        assert "no-backend" in (state.note or "")
        assert inference.state()[0].state == "failed"
        await asyncio.sleep(0.6)
        with pytest.raises(ModelUnavailable, match="KeyError"):
            await answer(inference, asked("x"))

    run(echo_inference, test)


def test_a_load_that_fails_when_nobody_waits_any_more_is_still_told(
    echo_inference: BuildEcho, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(inference: Inference) -> None:
        monkeypatch.setitem(choice.BACKENDS, "echo", ("no-backend",))
        task = asyncio.create_task(answer(inference, asked("x")))
        await started()
        task.cancel()
        async with asyncio.timeout(20):
            while inference.state()[0].state != "failed":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(ModelUnavailable, match="no-backend"):
            await answer(inference, asked("x"))

    run(echo_inference, test)


def test_any_text_passes_through_the_frames(echo_inference: BuildEcho) -> None:
    async def test(inference: Inference) -> None:
        for text in ("\ud800", "\0", "a\u2028b", "\U0001f600", '"\\'):
            message = Message.model_construct(role="user", content=text)
            request = asked("x").model_copy(update={"messages": [message]})
            assert (await answer(inference, request)).text == text

    run(echo_inference, test)


def test_a_worker_that_dies_while_loading_says_how(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with pytest.raises(
            ModelUnavailable, match=r"not be loaded: exit code 3\. It said last: alas"
        ):
            await WorkerProcess.start(
                "it",
                {},
                cwd=cache.root,
                environment={**os.environ},
                log=logging.getLogger("uait.test"),
            )

    monkeypatch.setattr("uait_server_ext.inference.process.MODULE", "dying_worker")
    folder = cache.root / "modules"
    folder.mkdir()
    (folder / "dying_worker.py").write_text("import sys; sys.stderr.write('alas\\n'); sys.exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    asyncio.run(main())


def test_the_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, logging
from pathlib import Path
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.models import ChatRequest, Message
from uait_server_ext.inference.service import Inference

async def main():
    echo = Catalogue.load().get("echo").model_copy(update={{"delay_seconds": 1.0}})
    inference = Inference(cache=ModelCache(Path({str(tmp_path)!r})),
        catalogue=Catalogue([*Catalogue.load().entries, echo]), log=logging.getLogger())
    request = ChatRequest(messages=[Message(role="user", content="a " * 500)], model="echo")
    async for event in inference.chat(request):
        print(event.text, flush=True)

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline().strip() == b"a"
        (worker,) = psutil.Process(parent.pid).children()
        parent.kill()
    assert psutil.wait_procs([worker], timeout=2)[1] == []


def test_what_libraries_print_does_not_disturb_the_frames() -> None:
    script = """
import os
from uait_server_ext.inference import protocol, worker
requests, replies = worker._private_streams()
print("printed", flush=True)
os.system("echo from a child; cat")
replies.write(protocol.encode({"got": protocol.read(requests).message}))
replies.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"\x07\x00\x00\x00\x00\x00\x00\x00" + b'{"a":1}',
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == b'\x0f\x00\x00\x00\x00\x00\x00\x00{"got":{"a":1}}'
    assert b"printed" in done.stderr
    assert b"from a child" in done.stderr
