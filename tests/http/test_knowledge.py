"""Collections over HTTP: the whole way, and every bad input of a careless user."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPResponse

from tests.http.test_models import events_of
from tests.http.test_system import problem_of

Fetch = Callable[..., Awaitable[HTTPResponse]]
pytestmark = pytest.mark.slow

TEXT = """# Lighthouse

## Keeper

The lighthouse keeper lights the lamp at sunset every day. The lamp burns two litres of oil a night.

## Boat

The supply boat comes on the first Monday of each month, unless the sea is rough.
"""


def post(fetch: Fetch, name: str, action: str, body: dict[str, Any]) -> Awaitable[HTTPResponse]:
    return fetch(
        "uait",
        "v1",
        "collections",
        name,
        action,
        method="POST",
        body=json.dumps(body),
        headers={"Content-Type": "application/json"},
        request_timeout=120,
    )


@pytest.fixture
def folder(jp_root_dir: Path) -> Path:
    path = jp_root_dir / "my documents – ü"
    path.mkdir()
    (path / "lighthouse.md").write_text(TEXT)
    return path


async def test_ingest_search_ask_delete(jp_fetch: Fetch, folder: Path) -> None:
    events = events_of(await post(jp_fetch, "sea", "ingest", {"path": folder.name}))
    assert [event["type"] for event in events] == ["started", "file", "done"]
    assert events[1]["state"] == "added"
    assert events[-1]["added"] == 1

    found = json.loads((await post(jp_fetch, "sea", "search", {"query": "oil"})).body)
    assert "two litres of oil" in found["hits"][0]["text"]
    assert found["hits"][0]["path"].endswith("lighthouse.md")

    *events, done = events_of(
        await post(jp_fetch, "sea", "ask", {"question": "When does the supply boat come?"})
    )
    assert events[0]["type"] == "evidence"
    answer = done["answer"]
    assert not answer["declined"]
    assert "first Monday" in answer["extract"]
    assert answer["citations"][0]["path"].endswith("lighthouse.md")
    assert answer["citations"][0]["place"]["label"]
    span = answer["citations"][0]["place"]
    assert span["end"] > span["start"] >= 0
    assert answer["usage"]["completion_tokens"] > 0

    listed = json.loads((await jp_fetch("uait", "v1", "collections", "sea", "documents")).body)
    assert listed["total"] == 1
    gone = await jp_fetch("uait", "v1", "collections", "sea", method="DELETE")
    assert gone.code == 204
    problem = await problem_of(jp_fetch("uait", "v1", "collections", "sea"))
    assert problem["code"] == "collection-not-found"
    assert (folder / "lighthouse.md").exists()


async def test_a_second_ingest_costs_no_embedding(jp_fetch: Fetch, folder: Path) -> None:
    await post(jp_fetch, "sea", "ingest", {"path": folder.name})
    done = events_of(await post(jp_fetch, "sea", "ingest", {"path": folder.name}))[-1]
    assert (done["unchanged"], done["added"], done["embedded"]) == (1, 0, 0)


async def test_a_question_the_documents_do_not_answer_is_declined(
    jp_fetch: Fetch, folder: Path
) -> None:
    await post(jp_fetch, "sea", "ingest", {"path": folder.name})
    question = {"question": "What is the boiling point of tungsten?"}
    done = events_of(await post(jp_fetch, "sea", "ask", question))[-1]
    assert done["answer"]["declined"]
    assert done["answer"]["citations"] == []
    assert done["answer"]["usage"]["completion_tokens"] == 0


async def test_every_bad_file_is_reported_and_the_good_one_is_kept(
    jp_fetch: Fetch, folder: Path
) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnot really\n%%EOF")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 64)
    with (folder / "huge.md").open("wb") as huge:
        huge.truncate(200 * 1024 * 1024)
    events = events_of(await post(jp_fetch, "sea", "ingest", {"path": folder.name}))
    reports = {Path(e["path"]).name: e for e in events if e["type"] == "file"}
    assert reports["lighthouse.md"]["state"] == "added"
    for name in ("broken.pdf", "binary.txt", "huge.md"):
        assert reports[name]["state"] == "failed"
        assert len(reports[name]["error"]) > 20
    assert events[-1]["failed"] == 3
    status = json.loads((await jp_fetch("uait", "v1", "collections", "sea")).body)
    assert status["documents"] == 1
    assert {Path(f["path"]).name for f in status["failed"]} == {
        "broken.pdf",
        "binary.txt",
        "huge.md",
    }


async def test_an_empty_folder_is_said_to_be_empty(jp_fetch: Fetch, jp_root_dir: Path) -> None:
    (jp_root_dir / "empty").mkdir()
    problem = await problem_of(post(jp_fetch, "sea", "ingest", {"path": "empty"}))
    assert problem["code"] == "invalid-input"
    assert "empty" in problem["detail"]
    problem = await problem_of(jp_fetch("uait", "v1", "collections", "sea"))
    assert problem["code"] == "collection-not-found"


async def test_a_path_that_is_not_there_is_404(jp_fetch: Fetch) -> None:
    problem = await problem_of(post(jp_fetch, "sea", "ingest", {"path": "nowhere"}))
    assert problem["code"] == "not-found"
    assert "nowhere" in problem["detail"]


@pytest.mark.parametrize("path", ["/etc", "../../../../../../etc/passwd"])
async def test_a_path_outside_the_roots_is_403_and_names_the_setting(
    jp_fetch: Fetch, path: str
) -> None:
    problem = await problem_of(post(jp_fetch, "sea", "ingest", {"path": path}))
    assert problem["code"] == "permission-denied"
    assert "knowledge_roots" in problem["detail"]


@pytest.mark.parametrize("action", ["search", "ask"])
async def test_an_unknown_collection_is_404_and_names_what_there_is(
    jp_fetch: Fetch, folder: Path, action: str
) -> None:
    await post(jp_fetch, "sea", "ingest", {"path": folder.name})
    body = {"query": "x"} if action == "search" else {"question": "x"}
    problem = await problem_of(post(jp_fetch, "see", action, body))
    assert problem["code"] == "collection-not-found"
    assert "sea" in problem["detail"]


async def test_an_unknown_model_is_404_before_anything_is_retrieved(
    jp_fetch: Fetch, folder: Path
) -> None:
    await post(jp_fetch, "sea", "ingest", {"path": folder.name})
    body = {"question": "When does the boat come?", "model": "gpt-17"}
    problem = await problem_of(post(jp_fetch, "sea", "ask", body))
    assert problem["code"] == "model-not-found"


async def test_a_question_over_the_context_length_is_refused(jp_fetch: Fetch, folder: Path) -> None:
    await post(jp_fetch, "sea", "ingest", {"path": folder.name})
    body = {"question": "When does the supply boat come to the lighthouse? " * 3000}
    problem = await problem_of(post(jp_fetch, "sea", "ask", body))
    assert problem["code"] == "context-too-long"
