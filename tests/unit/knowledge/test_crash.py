"""A kill at any moment of an ingest loses no reported file, and what is left is known."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.unit.knowledge.conftest import Ingesting, OpenBase
from uait_server_ext.knowledge.models import SearchRequest

FILES = 60


def text_of(number: int) -> str:
    return f"# Note {number}\n\nThe word of this note is word{number}."


@pytest.fixture
def many_documents(documents: Path) -> Path:
    for number in range(FILES):
        (documents / f"{number:03}.md").write_text(text_of(number))
    return documents


def kill_after(folder: Path, seconds: float) -> dict[str, str]:
    """Start an ingest, kill it so long after it began; return what it reported."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ingest_until_killed.py")), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout
    with child.stdout:
        assert child.stdout.readline() == "begun\n"
        time.sleep(seconds)
        child.kill()
        lines = child.stdout.read().splitlines()
    child.wait()
    reports = (line.partition(" ") for line in lines)
    return {path: state for state, _, path in reports}


async def check(base, reported: dict[str, str]) -> set[str]:
    """Check that all that was reported is there and searchable; return what is pending."""
    status = await base.status("default")
    listed = await base.documents("default", limit=1000)
    there = {document.path for document in listed.documents}
    assert set(reported) <= there
    assert not status.ingesting
    pending = {file.path for file in status.pending}
    assert pending | there == {f"documents/{number:03}.md" for number in range(FILES)}
    assert not pending & there
    for path in sorted(there)[::7]:
        for mode in ("text", "dense"):
            request = SearchRequest(query=text_of(int(Path(path).stem)), mode=mode, k=1)
            assert (await base.search("default", request)).hits[0].path == path
    return pending


@pytest.mark.parametrize("seed", range(6))
async def test_a_kill_loses_nothing_that_was_reported(
    open_base: OpenBase, ingest: Ingesting, many_documents: Path, seed: int
) -> None:
    moment = random.Random(seed).uniform(0.1, 2.5)
    folder = many_documents.parent
    reported = kill_after(folder, moment)
    if not (folder / "knowledge" / "default" / "rows.duckdb").exists():
        assert reported == {}
        return
    async with open_base() as base:
        if (await base.status("default")).generation == 0 and not reported:
            return  # killed before the files were taken on
        pending = await check(base, reported)
        if pending:
            rest = await ingest(base, None)
            assert set(rest.states) == pending
            assert rest.done.failed == 0
        assert await check(base, reported) == set()
    async with open_base() as base:
        assert await check(base, reported) == set()


async def test_kills_one_after_the_other(
    open_base: OpenBase, ingest: Ingesting, many_documents: Path
) -> None:
    reported: dict[str, str] = {}
    for seconds in (0.7, 0.5, 0.9):
        reported |= kill_after(many_documents.parent, seconds)
    async with open_base() as base:
        await check(base, reported)
        await ingest(base, "documents")
        assert await check(base, reported) == set()
