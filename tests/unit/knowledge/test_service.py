"""The knowledge base as a whole: collections, searches, locks, what survives a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.unit.knowledge.conftest import Ingesting, OpenBase
from tests.unit.knowledge.fakes import HashEmbedder
from uait_server_ext.errors import CollectionNotFound, Conflict, Unavailable
from uait_server_ext.knowledge.models import AskRequest, SearchRequest


@pytest.fixture
def texts(documents: Path) -> Path:
    (documents / "cats.md").write_text("# Cats\n\nA cat sleeps most of the day. Cats hunt mice.")
    (documents / "boats.md").write_text("# Boats\n\nA boat floats. The sail catches the wind.")
    (documents / "trees.md").write_text("# Trees\n\nAn oak tree grows slowly and lives long.")
    return documents


@pytest.mark.parametrize("mode", ["hybrid", "text", "dense"])
async def test_search_finds_and_scores(
    open_base: OpenBase, ingest: Ingesting, texts: Path, mode: str
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        response = await base.search("default", SearchRequest(query="cat hunting", mode=mode, k=2))
    best = response.hits[0]
    assert (best.path, best.title, best.place.label) == ("documents/cats.md", "Cats", "§ Cats")
    assert best.text.startswith("# Cats")
    assert best.text_score is None or best.text_score > 0
    assert (best.dense_score is None) == (mode == "text")
    assert all(0 <= hit.score <= 1.0001 for hit in response.hits)
    assert [hit.score for hit in response.hits] == sorted(
        (hit.score for hit in response.hits), reverse=True
    )
    assert len(response.hits) <= 2


async def test_a_search_without_any_match_by_words_still_ranks_by_meaning(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        response = await base.search("default", SearchRequest(query="xyzzy"))
        assert {hit.text_score for hit in response.hits} == {None}
        assert len(response.hits) == 3
        nothing = await base.search("default", SearchRequest(query="xyzzy", mode="text"))
        assert nothing.hits == []


async def test_all_is_there_after_a_restart(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        before = await base.search("default", SearchRequest(query="oak tree"))
        status = await base.status("default")
    async with open_base() as base:
        after = await base.search("default", SearchRequest(query="oak tree"))
        assert after.hits == before.hits
        again = await base.status("default")
        assert (again.documents, again.chunks, again.generation) == (3, 3, 3)
        assert again.sources == status.sources == [str(texts)]
        assert again.disk_bytes > 0
        assert [collection.name for collection in await base.collections()] == ["default"]


async def test_unknown_collections_name_the_known_ones(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base() as base:
        with pytest.raises(CollectionNotFound, match="add documents to create one"):
            await base.status("default")
        await ingest(base, texts, name="cats")
        await ingest(base, texts, name="dogs")
        with pytest.raises(CollectionNotFound, match="`cats`, `dogs`"):
            await base.search("birds", SearchRequest(query="x"))
        with pytest.raises(CollectionNotFound):
            await base.documents("birds")
        with pytest.raises(CollectionNotFound):
            await base.delete("birds")


async def test_a_deleted_collection_is_gone_and_may_come_again(
    open_base: OpenBase, ingest: Ingesting, texts: Path, tmp_path: Path
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        await base.delete("default")
        with pytest.raises(CollectionNotFound):
            await base.search("default", SearchRequest(query="cat"))
        assert list((tmp_path / "knowledge").iterdir()) == []
        assert (await ingest(base, texts)).done.added == 3
    (tmp_path / "knowledge" / ".deleted-half").mkdir()
    async with open_base():
        assert [folder.name for folder in (tmp_path / "knowledge").iterdir()] == ["default"]
    assert (texts / "cats.md").exists()


async def test_who_reads_while_a_collection_is_deleted_hears_that_it_is_gone(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base() as base:
        over = asyncio.Event()

        async def reads(read: Callable[[], Awaitable[object]]) -> int:
            done = 0
            while not over.is_set():
                with suppress(CollectionNotFound):
                    await read()
                    done += 1
                await asyncio.sleep(0.005)
            return done

        def search() -> Awaitable[object]:
            return base.search("default", SearchRequest(query="cat"))

        readers = [
            asyncio.create_task(reads(read))
            for read in (search, lambda: base.status("default"), lambda: base.documents("default"))
            for _ in range(3)
        ]
        listing = asyncio.create_task(reads(base.collections))
        for _ in range(5):
            await ingest(base, texts)
            await base.delete("default")
        over.set()
        assert all(await asyncio.gather(*readers, listing))


async def test_another_embedding_model_is_refused_with_a_way_out(
    open_base: OpenBase, ingest: Ingesting, texts: Path
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
    async with open_base(embedder=HashEmbedder("other-model")) as base:
        for call in (
            base.search("default", SearchRequest(query="cat")),
            ingest(base, texts),
            ingest(base, None),
            anext(base.ask("default", AskRequest(question="cat?"))),
        ):
            with pytest.raises(Conflict, match="embedding_model to hash-384"):
                await call
        assert (await base.status("default")).embedding_model == "hash-384"
        by_words = await base.search("default", SearchRequest(query="cat", mode="text"))
        assert by_words.hits


async def test_searches_go_on_while_documents_are_added(
    open_base: OpenBase, ingest: Ingesting, texts: Path, embedder: HashEmbedder
) -> None:
    async with open_base() as base:
        await ingest(base, texts)
        for number in range(60):
            (texts / f"new {number}.md").write_text(f"Number {number}. " + "A cat sleeps. " * 40)
        embedder.seconds_each = 0.005
        adding = asyncio.create_task(ingest(base, texts))
        searches = 0
        while not adding.done():
            response = await base.search("default", SearchRequest(query="oak tree"))
            assert response.hits[0].path == "documents/trees.md"
            searches += 1
        assert (await adding).done.added == 60
        assert searches > 3


async def test_stopping_the_service_stops_an_ingest(
    open_base: OpenBase, ingest: Ingesting, texts: Path, embedder: HashEmbedder
) -> None:
    embedder.seconds_each = 10
    async with open_base() as base:
        adding = asyncio.create_task(ingest(base, texts))
        await asyncio.sleep(0.5)
        assert base.state() == [("knowledge", "ready", "ingesting default")]
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert base.state() == [("knowledge", "stopped", None)]
    with pytest.raises(Unavailable, match="restart"):
        await base.status("default")
    embedder.seconds_each = 0
    async with open_base() as base:
        assert len((await base.status("default")).pending) == 3


async def test_names_of_collections(open_base: OpenBase, ingest: Ingesting, texts: Path) -> None:
    async with open_base() as base:
        await ingest(base, texts, name="a.b_c-1")
        assert (await base.status("a.b_c-1")).documents == 3
