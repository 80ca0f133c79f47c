"""Frames, stop strings and batches: the small parts under a request."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.inference import protocol
from uait_server_ext.inference.embedder import MOST_CHARACTERS, MOST_TEXTS, batches
from uait_server_ext.inference.stops import StopFilter

MESSAGES = st.dictionaries(st.text(), st.text() | st.integers() | st.none())


@given(frames=st.lists(st.tuples(MESSAGES, st.binary())))
def test_frames_come_out_as_they_went_in(frames: list[tuple[dict[str, Any], bytes]]) -> None:
    stream = io.BytesIO(b"".join(protocol.encode(*frame) for frame in frames))
    assert [protocol.read(stream) for _ in frames] == frames
    assert protocol.read(stream) is None


@given(message=MESSAGES, body=st.binary(), data=st.data())
def test_a_frame_cut_short_is_the_end(
    message: dict[str, Any], body: bytes, data: st.DataObject
) -> None:
    whole = protocol.encode(message, body)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert protocol.read(io.BytesIO(cut)) is None

    async def read() -> protocol.Frame | None:
        reader = asyncio.StreamReader()
        reader.feed_data(cut)
        reader.feed_eof()
        return await protocol.read_async(reader)

    assert asyncio.run(read()) is None


@given(
    pieces=st.lists(st.text("abX", max_size=4)),
    stops=st.lists(st.text("abX", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    """However the text is cut into pieces, what is shown is the text up to the first stop."""
    whole = "".join(pieces)
    filter_ = StopFilter(stops)
    shown = ""
    for piece in pieces:
        shown += filter_.push(piece)
        if filter_.stopped:
            break
    shown += filter_.rest()
    # the first stop is the one that is complete first: that is where a stream must end
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    assert filter_.stopped == bool(ends)
    if ends:
        assert whole.startswith(shown)
        assert not any(stop in shown for stop in stops)
    else:
        assert shown == whole


def test_text_is_held_back_only_while_it_may_be_a_stop() -> None:
    filter_ = StopFilter(["END"])
    assert filter_.push("the EN") == "the "
    assert filter_.push("gine") == "ENgine"
    assert filter_.push(" E") == " "
    assert filter_.push("ND of it") == ""
    assert filter_.stopped


@given(lengths=st.lists(st.integers(0, 1_300)))
def test_batches_hold_every_row_once_and_stay_small(lengths: list[int]) -> None:
    made = list(batches(lengths))
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    for batch in made:
        longest = max(lengths[row] for row in batch)
        assert len(batch) <= MOST_TEXTS
        assert len(batch) == 1 or longest * len(batch) <= MOST_CHARACTERS
