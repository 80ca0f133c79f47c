"""How often a growing answer is drawn, and where."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from uait_kernel.display.live import FinalOnly, Frames, NotebookLive, TerminalLive, live_output
from uait_kernel.results.answer import Answer, AnswerDetails


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_frames_come_about_ten_times_a_second() -> None:
    clock, drawn = Clock(), []
    frames = Frames(clock)
    for _ in range(1_000):  # a second in which a token comes every millisecond
        frames.draw(lambda: drawn.append(clock.now))
        clock.now += 0.001
    assert 9 <= len(drawn) <= 11
    assert drawn[0] == 100.0


@pytest.mark.parametrize(("cost", "least", "most"), [(0.05, 5.0, 10.0), (0.5, 30.0, 35.0)])
def test_slow_drawing_takes_little_of_the_time_and_still_comes(
    cost: float, least: float, most: float
) -> None:
    clock = Clock()
    spent = 0.0

    def slow() -> None:
        nonlocal spent
        spent += cost
        clock.now += cost

    frames = Frames(clock)
    while clock.now < 200.0:
        frames.draw(slow)
        clock.now += 0.01
    assert least <= spent <= most


class Published:
    """Records what reaches a front end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        monkeypatch.setattr("IPython.display.display", self.display)

    def display(self, data: dict[str, Any], **options: Any) -> Published:
        assert options.pop("raw") is True
        kind = "display" if options.pop("display_id", False) else "final"
        self.messages.append((kind, data, options["metadata"]))
        return self

    def update(self, data: dict[str, Any], **options: Any) -> None:
        self.messages.append(("update", data, options["metadata"]))


def part(text: str) -> Answer:
    return Answer(text, AnswerDetails(state="streaming"))


def test_a_notebook_has_one_display_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    published, clock = Published(monkeypatch), Clock()
    live = NotebookLive(1, clock)
    for length in range(5):
        live.draw(partial(part, "x" * length))
        clock.now += 0.2
    live.finish(Answer("whole", AnswerDetails(model="echo")))
    kinds = [kind for kind, _, _ in published.messages]
    assert kinds == ["display", *["update"] * 5]
    _, data, metadata = published.messages[-1]
    assert data["text/plain"] == "whole"
    assert metadata["uait"]["model"] == "echo"


def test_nobody_watching_means_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published(monkeypatch)
    live = FinalOnly(1)
    live.draw(lambda: pytest.fail("nothing is drawn before the end"))
    live.finish(Answer("whole"))
    assert [kind for kind, _, _ in published.messages] == ["final"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"allow_stdin": True}, NotebookLive),
        ({"allow_stdin": False}, FinalOnly),
        ({}, NotebookLive),
        (None, TerminalLive),
    ],
)
def test_the_place_decides(content: dict[str, Any] | None, kind: type) -> None:
    class Kernel:
        def get_parent(self, channel: str) -> dict[str, Any]:
            assert channel == "shell"
            return {"content": content}

    class Shell:
        execution_count = 3
        kernel = Kernel() if content is not None else None

    assert type(live_output(Shell())) is kind  # type: ignore[arg-type]
