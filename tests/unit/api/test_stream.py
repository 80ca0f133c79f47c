"""Server-sent events: framing, keep-alive, cancel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.api.stream import KEEP_ALIVE, error_frame, frame, frames, last
from uait_server_ext.inference.models import TextDelta


@given(st.text())
def test_a_frame_is_two_lines_whatever_the_text(text: str) -> None:
    lines = frame(TextDelta(text=text)).split("\n")
    assert lines[0] == "event: delta"
    assert json.loads(lines[1].removeprefix("data: ")) == {
        "type": "delta",
        "text": text,
        "logprobs": None,
    }
    assert lines[2:] == ["", ""]


def test_an_error_frame_carries_the_problem() -> None:
    assert error_frame({"status": 503}) == 'event: error\ndata: {"status": 503}\n\n'


async def words(*texts: str, pause: float = 0.0) -> AsyncIterator[TextDelta]:
    for text in texts:
        await asyncio.sleep(pause)
        yield TextDelta(text=text)


def test_events_come_in_order() -> None:
    async def collect() -> list[str]:
        return [text async for text in frames(words("a", "b"))]

    assert asyncio.run(collect()) == [frame(TextDelta(text="a")), frame(TextDelta(text="b"))]


def test_silence_is_filled_with_comments() -> None:
    async def collect() -> list[str]:
        return [text async for text in frames(words("a", pause=0.25), keep_alive=0.1)]

    got = asyncio.run(collect())
    assert got[:2] == [KEEP_ALIVE, KEEP_ALIVE]
    assert got[-1] == frame(TextDelta(text="a"))


def test_closing_the_stream_ends_the_work() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[TextDelta]:
        try:
            while True:
                yield TextDelta(text="x")
                await asyncio.sleep(60)
        finally:
            ended.set()

    async def read_one() -> None:
        stream = frames(endless())
        assert await anext(stream) == frame(TextDelta(text="x"))
        await stream.aclose()  # type: ignore[attr-defined]
        assert ended.is_set()

    asyncio.run(read_one())


def test_errors_of_the_operation_pass_through() -> None:
    async def broken() -> AsyncIterator[TextDelta]:
        yield TextDelta(text="a")
        raise LookupError("gone")

    async def collect() -> list[str]:
        return [text async for text in frames(broken())]

    with pytest.raises(LookupError, match="gone"):
        asyncio.run(collect())


def test_last_is_the_result() -> None:
    assert asyncio.run(last(words("a", "b"))) == TextDelta(text="b")


def test_a_stream_without_a_result_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match="without a result"):
        asyncio.run(last(words()))
