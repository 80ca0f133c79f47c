"""The magics as plain functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import uait_kernel as uait
from uait_kernel.errors import NotFound, UaitClientError, UnexpectedAnswer
from uait_kernel.results.answer import AnswerInProgress
from uait_kernel.results.knowledge import IngestSummary

if TYPE_CHECKING:
    from tests.kernel.conftest import ProtocolServer


def test_ask(connected: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    answer = uait.ask("how?", k=2, phrase=False)
    assert answer.extract == answer == "UAIT is installed with one command."
    assert connected.bodies("ask") == [{"question": "how?", "k": 2, "phrase": False}]
    assert capsys.readouterr().out == ""


def test_chat(connected: ProtocolServer) -> None:
    assert uait.chat("say this", temperature=0.5, seed=1) == "say this"
    (body,) = connected.bodies("chat")
    assert body is not None
    assert (body["temperature"], body["seed"]) == (0.5, 1)


def test_knowledge(connected: ProtocolServer, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("a")
    summary = uait.add(tmp_path, collection="new")
    assert (summary.state, summary.added, summary.files) == ("done", 1, 1)
    assert uait.resume(collection="new").added == 0
    assert uait.status("new").documents == 1
    assert [status.name for status in uait.collections()] == ["default", "new"]
    assert len(uait.search("x", k=1)) == 1
    assert uait.models()[0].id == "echo"
    with pytest.raises(NotFound):
        uait.search("x", collection="none")


def test_every_error_is_of_one_kind(connected: ProtocolServer) -> None:
    with pytest.raises(UaitClientError):
        uait.ask("how?", model="gpt")


def test_answers_of_later_versions_are_read_as_far_as_known() -> None:
    progress = AnswerInProgress("q", collection="c")
    assert progress.is_empty
    for event in (
        {"type": "thinking", "text": "of a later version"},
        {"type": "evidence", "declined": False, "extract": "E", "citations": [], "new": 1},
        {"type": "delta", "text": "\n W"},
        {"type": "delta", "text": "ords", "new": 1},
    ):
        progress.add(event)
    assert progress.answer("stopped") == "E\n\nWords"
    with pytest.raises(UnexpectedAnswer, match="same version"):
        progress.add({"type": "done", "answer": {"declined": False}})
    summary = IngestSummary("c").after({"type": "later"})
    summary = summary.after({"type": "file", "path": "p", "state": "later"})
    assert (summary.reported, summary.added) == (1, 0)
    with pytest.raises(UnexpectedAnswer):
        summary.after({"type": "file"})
