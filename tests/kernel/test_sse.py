"""The event-stream parser: the same events however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_kernel import sse
from uait_kernel.sse import EventParser, EventTooLarge, ServerEvent

LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
# Any text on one line: what a server may put into a `data:` line.
LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(
    st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=8
).filter(lambda name: not name.startswith(" "))


def parse(*pieces: bytes) -> list[ServerEvent]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[ServerEvent]]:
    """Draw a stream with comments and every line end, and the events that are in it."""
    text = draw(st.sampled_from(["", "\ufeff"]))
    events = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.none() | NAMES)
        data = draw(st.lists(LINES, min_size=1, max_size=3))
        lines = [f"event: {name}"] if name is not None else []
        lines += [f"data: {line}" for line in data]
        lines.insert(draw(st.integers(0, len(lines))), f":{draw(LINES)}")
        end = draw(LINE_ENDS)  # one an event: a CR line before an empty LF line would be one CRLF
        text += "".join(line + end for line in [*lines, ""])
        events.append(ServerEvent(name or "message", "\n".join(data)))
    return text.encode(), events


@given(streams(), st.data())
def test_any_cutting_gives_the_same_events(
    drawn: tuple[bytes, list[ServerEvent]], data: st.DataObject
) -> None:
    stream, events = drawn
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    bounds = [0, *cuts, len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(bounds)]
    assert parse(*pieces) == events
    assert parse(*(stream[at : at + 1] for at in range(len(stream)))) == events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("message", "a")]),
        (b"data:a\n\n", [("message", "a")]),
        (b"data:  a\n\n", [("message", " a")]),
        (b"event: x\r\ndata: a\r\ndata: b\r\n\r\n", [("x", "a\nb")]),
        (b"event: x\n\ndata: a\n\n", [("message", "a")]),
        (b": keep-alive\n\n: keep-alive\n\n", []),
        (b"data\n\n", [("message", "")]),
        (b"id: 3\nretry: 10\nunknown: y\ndata: a\n\n", [("message", "a")]),
        (b"data: unfinished\n", []),
        (b"data: \xff\n\n", [("message", "\ufffd")]),
        ("data: Grüße 🙂\n\n".encode(), [("message", "Grüße 🙂")]),
    ],
)
def test_fields_as_the_standard_has_them(stream: bytes, events: list[tuple[str, str]]) -> None:
    assert parse(stream) == [ServerEvent(*event) for event in events]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LARGEST_EVENT", 1_000)
    with pytest.raises(EventTooLarge):
        parse(*[b"data: 123456789\n"] * 200)
    with pytest.raises(EventTooLarge):
        EventParser().feed(b"x" * 1_001)
