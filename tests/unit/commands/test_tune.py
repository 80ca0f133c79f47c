"""`uait tune`: reports on examples, and lists, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import REPOSITORY
from tests.unit.inference.tiny_models import write_lines
from uait_server_ext.commands.tuning import app
from uait_server_ext.errors import InvalidInput, NotFound

DATA = REPOSITORY / "notebooks" / "data" / "bookings"


def run(*arguments: str, data_dir: Path | None = None) -> str:
    place = ["--data-dir", str(data_dir)] if data_dir else []
    result = CliRunner().invoke(app, [*place, *arguments], catch_exceptions=False)
    return result.output


def test_the_shipped_examples_are_whole_and_leak_nothing() -> None:
    assert run("check", str(DATA)).strip() == "240 to learn, 40 to validate, 40 held out"


def test_what_occurs_twice_is_named(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write_lines(tmp_path / f"{part}.jsonl", [{"prompt": p, "completion": "c"} for p in "ab"])
    said = run("check", str(tmp_path))
    assert "2 of the other parts" in said
    assert "valid.jsonl:1 is like train.jsonl:1" in said


def test_a_wrong_line_ends_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"prompt": "a"}])
    with pytest.raises(InvalidInput, match=r"a\.jsonl:1"):
        run("check", str(tmp_path / "a.jsonl"))


def test_a_fresh_state_has_no_jobs(tmp_path: Path) -> None:
    assert "job" in run("list", data_dir=tmp_path)
    with pytest.raises(NotFound, match="uait tune list"):
        run("show", "tune_x", data_dir=tmp_path)
