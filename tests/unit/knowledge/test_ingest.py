"""Ingest: what is reported, what is skipped, what is left when it is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from tests.unit.knowledge.conftest import Ingested, Ingesting, OpenBase
from tests.unit.knowledge.fakes import HashEmbedder
from tests.unit.knowledge.pdfs import pdf
from uait_server_ext.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from uait_server_ext.knowledge.models import FileReport, IngestStarted, SearchRequest


def long_text(subject: str, paragraphs: int = 5) -> str:
    sentence = f"The {subject} is described in this sentence with a few more words. "
    return "\n\n".join(f"Paragraph {n}. {sentence * 12}" for n in range(paragraphs))


async def found(base, query, name="default", **options):
    response = await base.search(name, SearchRequest(query=query, **options))
    return [hit.path for hit in response.hits]


async def test_a_folder_of_every_kind(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "guide.md").write_text("# Guide\n\nOpen the lighthouse door.")
    (documents / "notes.txt").write_text("Notes\n\nThe keeper sleeps.")
    (documents / "page.html").write_text("<h1>Page</h1><p>The lamp turns.</p>")
    (documents / "paper.pdf").write_bytes(pdf([["The fog horn sounds."]]))
    (documents / "tool.py").write_text("def lamp():\n    return 'on'\n")
    (documents / "README").write_text("No extension, still text.")
    cells = [{"cell_type": "markdown", "source": "# Tides"}]
    (documents / "tides.ipynb").write_text(json.dumps({"cells": cells}))
    deep = documents / "sub folder" / "ünïcode ☃"
    deep.mkdir(parents=True)
    (deep / "snow man.md").write_text("Snow falls on the rocks.")
    async with open_base() as base:
        result = await ingest(base, documents)
        assert result.states == dict.fromkeys(
            [
                "documents/README", "documents/guide.md", "documents/notes.txt",
                "documents/page.html", "documents/paper.pdf", "documents/tides.ipynb",
                "documents/tool.py", "documents/sub folder/ünïcode ☃/snow man.md",
            ],
            "added",
        )  # fmt: skip
        assert isinstance(result.events[0], IngestStarted)
        assert (result.events[0].files, result.done.added, result.done.chunks) == (8, 8, 8)
        assert (await found(base, "snow rocks"))[0].endswith("snow man.md")
        listed = await base.documents("default")
        assert listed.total == 8
        assert {d.media_type for d in listed.documents} >= {"application/pdf", "text/x-python"}
        page = await base.documents("default", offset=6, limit=5)
        assert [document.path for document in page.documents] == [
            "documents/tides.ipynb", "documents/tool.py",
        ]  # fmt: skip


async def test_what_is_left_out_without_a_word(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_text("Read me.")
    for name in (".hidden.md", "picture.gif", "data.csv", "archive.zip"):
        (documents / name).write_text("x")
    for folder in (".git", "__pycache__", "node_modules", "venv"):
        (documents / folder).mkdir()
        (documents / folder / "b.md").write_text("Not me.")
    (documents / "venv" / "pyvenv.cfg").write_text("")
    (documents / "loop").symlink_to(documents)
    (documents / "nowhere").symlink_to(documents / "missing.md")
    os.mkfifo(documents / "pipe.txt")
    async with open_base() as base:
        result = await ingest(base, documents)
    assert result.states == {"documents/a.md": "added"}


async def test_what_cannot_be_read_is_reported_and_harms_nothing(
    open_base: OpenBase, ingest: Ingesting, documents: Path, tmp_path: Path
) -> None:
    (documents / "good.md").write_text("A good file.")
    (documents / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (documents / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    (documents / "locked.pdf").write_bytes(pdf([["secret"]], locked=True))
    (documents / "cyrillic.txt").write_bytes("Привет, мир".encode("cp1251"))
    (documents / "letter.docx").write_bytes(b"PK")
    (documents / "blank.md").write_text(" \n")
    with (documents / "huge.md").open("wb") as file:
        file.truncate(200_000_000)
    outside = tmp_path.parent / f"{tmp_path.name}-outside.md"
    outside.write_text("Out of bounds.")
    (documents / "link.md").symlink_to(outside)
    async with open_base() as base:
        began = time.monotonic()
        result = await ingest(base, documents)
        assert time.monotonic() - began < 10
        assert result.states.pop("documents/good.md") == "added"
        assert set(result.states.values()) == {"failed"}
        assert {path.partition("/")[2]: error for path, error in result.errors.items()} == {
            "binary.txt": "This is a binary file, not text, whatever its name says.",
            "broken.pdf": "The PDF is damaged, or no PDF at all: open it in a viewer and save it "
            "anew.",
            "locked.pdf": "The PDF is locked by a password: save a copy without one.",
            "cyrillic.txt": "The text's encoding cannot be told: save the file as UTF-8.",
            "letter.docx": "Files of kind .docx are not read: save it as PDF, HTML or Markdown.",
            "blank.md": "The file holds no text.",
            "huge.md": "The file has 200 MB, the limit is 52 MB: split it, or raise "
            "UaitApp.max_file_bytes.",
            "link.md": "The link leads out of the folders that documents may be added from.",
        }
        status = await base.status("default")
        assert (status.documents, status.pending) == (1, [])
        assert {file.path for file in status.failed} == set(result.errors)

        (documents / "broken.pdf").write_bytes(pdf([["Mended."]]))
        (documents / "locked.pdf").unlink()
        again = await ingest(base, documents)
        assert again.states["documents/broken.pdf"] == "added"
        failed = {file.path for file in (await base.status("default")).failed}
        assert failed.isdisjoint({"documents/broken.pdf", "documents/locked.pdf"})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
async def test_a_file_without_permission_is_reported(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "mine.md").write_text("x")
    (documents / "mine.md").chmod(0)
    async with open_base() as base:
        result = await ingest(base, documents)
    assert "Permission denied" in result.errors["documents/mine.md"]


async def test_a_name_that_is_no_unicode_is_reported(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "coffee.md").write_text("x")
    os.rename(documents / "coffee.md", os.fsencode(documents) + b"/caf\xe9.md")  # noqa: PTH104
    async with open_base() as base:
        result = await ingest(base, documents)
        assert list(result.errors.values()) == ["The file's name is not valid Unicode: rename it."]
        assert (await base.status("default")).failed


@pytest.mark.parametrize("content", ["nothing", "pictures"])
async def test_an_empty_folder_is_refused_and_leaves_no_collection(
    open_base: OpenBase, ingest: Ingesting, documents: Path, content: str
) -> None:
    if content == "pictures":
        (documents / "a.gif").write_bytes(b"x")
    async with open_base() as base:
        with pytest.raises(InvalidInput, match=r"no documents in .*documents"):
            await ingest(base, documents)
        assert await base.collections() == []


async def test_paths_that_are_refused(open_base: OpenBase, ingest: Ingesting) -> None:
    async with open_base() as base:
        with pytest.raises(NotFound, match=r"no file or folder .*nowhere"):
            await ingest(base, "nowhere")
        with pytest.raises(NotFound):
            await ingest(base, "nul\0byte")
        with pytest.raises(PermissionDenied, match=r"UaitApp\.knowledge_roots"):
            await ingest(base, "/etc")
        with pytest.raises(PermissionDenied):
            await ingest(base, "../")
        with pytest.raises(InvalidInput, match="name"):
            await ingest(base, "x", name="../x")
        assert await base.collections() == []


async def test_a_single_file_and_one_of_no_kind(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_text("Alone.")
    (documents / "a.json").write_text("{}")
    async with open_base() as base:
        assert (await ingest(base, "documents/a.md")).states == {"a.md": "added"}
        assert (await ingest(base, documents / "a.json")).states == {"a.json": "failed"}


async def test_unchanged_files_cost_nothing_and_changes_only_what_changed(
    open_base: OpenBase, ingest: Ingesting, documents: Path, embedder: HashEmbedder
) -> None:
    text = "\n\n".join(f"# Part {n}\n\n{long_text(f'subject{n}', 1)}" for n in range(4))
    (documents / "a.md").write_text(text)
    (documents / "b.md").write_text("The other file.")
    os.utime(documents / "b.md", (1, 1))
    async with open_base() as base:
        first = await ingest(base, documents)
        assert first.done.embedded == first.done.chunks == embedder.ingested == 5
        again = await ingest(base, documents)
        assert set(again.states.values()) == {"unchanged"}
        assert (again.done.unchanged, again.done.embedded, embedder.ingested) == (2, 0, 5)

        (documents / "a.md").write_text(text.replace("subject2", "topic2"))
        (documents / "copy.md").write_text("The other file.")
        changed = await ingest(base, documents)
        assert changed.states == {
            "documents/a.md": "changed", "documents/b.md": "unchanged",
            "documents/copy.md": "added",
        }  # fmt: skip
        # The title is the first heading, so only the part that changed has a new text; the copy's
        # differs from the first file's by its title.
        assert changed.done.embedded == 2
        assert await found(base, "topic2", mode="text") == ["documents/a.md"]
        assert await found(base, "subject2", mode="text") == []

        (documents / "b.md").unlink()
        removed = await ingest(base, None)
        assert removed.states["documents/b.md"] == "removed"
        assert "documents/b.md" not in await found(base, "other file", k=20)
        assert (await base.status("default")).documents == 2


async def test_a_changed_file_that_cannot_be_read_keeps_its_earlier_version(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_text("The lamp turns.")
    async with open_base() as base:
        await ingest(base, documents)
        (documents / "a.md").write_bytes(b"\0" * 50)
        result = await ingest(base, documents)
        assert result.errors["documents/a.md"].endswith("added before is kept.")
        assert await found(base, "lamp") == ["documents/a.md"]


async def test_a_source_that_is_gone_keeps_its_documents(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_text("The lamp turns.")
    async with open_base() as base:
        await ingest(base, documents)
        os.rename(documents, f"{documents}-unmounted")  # noqa: PTH104
        result = await ingest(base, None)
        assert "is not there; its documents are kept" in result.errors["documents"]
        assert (await base.status("default")).documents == 1


async def test_a_folder_that_is_emptied_loses_its_documents(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_text("The lamp turns.")
    async with open_base() as base:
        await ingest(base, documents)
        (documents / "a.md").unlink()
        assert (await ingest(base, documents)).states == {"documents/a.md": "removed"}


async def test_sources_that_overlap_and_share_a_name(
    open_base: OpenBase, ingest: Ingesting, documents: Path, tmp_path: Path
) -> None:
    inner = documents / "inner"
    inner.mkdir()
    (documents / "a.md").write_text("Outer.")
    (documents / ".private.md").write_text("Hidden, but added by its name.")
    (inner / "b.md").write_text("Inner.")
    other = tmp_path / "elsewhere" / "documents"
    other.mkdir(parents=True)
    (other / "a.md").write_text("Elsewhere.")
    async with open_base() as base:
        await ingest(base, documents / ".private.md")
        await ingest(base, inner)
        result = await ingest(base, documents)
        assert result.states == {"documents/a.md": "added", "inner/b.md": "unchanged"}
        result = await ingest(base, other)
        assert result.states == {f"{other.as_posix()}/a.md": "added"}
        again = await ingest(base, None)
        assert set(again.states.values()) == {"unchanged"}
        assert again.done.unchanged == 4
        assert (await base.status("default")).documents == 4


async def test_nothing_to_go_on_with(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    (documents / "a.md").write_bytes(b"\0")
    async with open_base() as base:
        with pytest.raises(NotFound):
            await ingest(base, None)


async def test_stopping_leaves_the_rest_pending_and_resuming_does_it(
    open_base: OpenBase, ingest: Ingesting, documents: Path, embedder: HashEmbedder
) -> None:
    for number in range(40):
        (documents / f"{number:02}.md").write_text(long_text(f"subject{number}"))
    embedder.seconds_each = 0.01
    async with open_base() as base:
        seen: list[FileReport] = []
        events = base.ingest("default", str(documents))
        async for event in events:
            if isinstance(event, FileReport):
                seen.append(event)
                assert (await base.status("default")).ingesting
                break
        began = time.monotonic()
        await events.aclose()
        assert time.monotonic() - began < 2
        status = await base.status("default")
        assert not status.ingesting
        done = {document.path for document in (await base.documents("default")).documents}
        assert {report.path for report in seen} <= done
        assert {file.path for file in status.pending} | done == {
            f"documents/{number:02}.md" for number in range(40)
        }
        assert status.pending
        assert set(await found(base, "subject0", mode="text")) == {"documents/00.md"}

        (documents / "39.md").unlink()
        (documents / "later.md").write_text("Not taken on yet.")
        rest = await ingest(base, None)
        assert rest.states.pop("documents/39.md") == "failed"
        assert set(rest.states) == {file.path for file in status.pending} - {"documents/39.md"}
        after = await base.status("default")
        assert (after.pending, after.failed, after.documents) == ([], [], 39)
        assert "documents/later.md" in (await ingest(base, None)).states


async def test_cancelling_the_task_stops_it_too(
    open_base: OpenBase, ingest: Ingesting, documents: Path, embedder: HashEmbedder
) -> None:
    for number in range(5):
        (documents / f"{number}.md").write_text(long_text(f"subject{number}"))
    embedder.seconds_each = 5.0
    async with open_base() as base:
        task = asyncio.create_task(ingest(base, documents))
        await asyncio.sleep(1)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 2
        assert len((await base.status("default")).pending) == 5


async def test_one_ingest_at_a_time(
    open_base: OpenBase, ingest: Ingesting, documents: Path, embedder: HashEmbedder
) -> None:
    (documents / "a.md").write_text("Text.")
    embedder.seconds_each = 0.3
    async with open_base() as base:
        first = asyncio.create_task(ingest(base, documents))
        await asyncio.sleep(0.1)
        with pytest.raises(Conflict, match="already"):
            await ingest(base, documents)
        with pytest.raises(Conflict):
            await base.delete("default")
        other = await ingest(base, documents, name="other")
        assert other.done.added == 1
        assert (await first).done.added == 1


async def test_a_model_that_fails_ends_the_ingest_with_its_error(
    open_base: OpenBase, ingest: Ingesting, documents: Path, embedder: HashEmbedder
) -> None:
    from uait_server_ext.errors import ModelUnavailable

    class Failing(HashEmbedder):
        async def embed(self, texts, *, purpose):
            raise ModelUnavailable("The embedding model is not here: pull it.")

    (documents / "a.md").write_text("Text.")
    async with open_base(embedder=Failing()) as base:
        with pytest.raises(ModelUnavailable, match="pull it"):
            await ingest(base, documents)
    async with open_base() as base:
        status = await base.status("default")
        assert (status.documents, len(status.pending)) == (0, 1)
        result: Ingested = await ingest(base, None)
        assert result.states == {"documents/a.md": "added"}


async def test_a_hanging_reader_is_given_up(
    open_base: OpenBase, ingest: Ingesting, documents: Path
) -> None:
    # No file may take 0 seconds, so every one is "hanging".
    (documents / "a.md").write_text("Text.")
    async with open_base(seconds_each_file=0.0) as base:
        result = await ingest(base, documents)
    assert "took longer than" in result.errors["documents/a.md"]
