"""The derived indexes: whatever happens to their files, a collection that opens is complete."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.knowledge.fakes import DIMENSION, hash_embedding
from tests.unit.knowledge.test_store import document
from uait_server_ext.knowledge.collection import Collection
from uait_server_ext.knowledge.retrieve import rank
from uait_server_ext.knowledge.vectors import EXACT_BELOW, VectorIndex

WORDS = ["apple", "boat", "cat", "door", "elephant", "fire", "garden", "house"]


def open_collection(folder: Path) -> Collection:
    return Collection(folder, model="hash", dimension=DIMENSION, log=logging.getLogger("test"))


def fill(collection: Collection, numbers: range) -> None:
    for number in numbers:
        word = WORDS[number % len(WORDS)]
        texts = [f"{word} number {number}", f"something else about {word}s"]
        collection.store.write([document(f"{number}.md", texts)], "now")


@pytest.fixture
def folder(tmp_path):
    """A collection of 24 documents, saved after 16, with the rest known to the rows only."""
    folder = tmp_path / "fruit"
    collection = open_collection(folder)
    fill(collection, range(16))
    collection.follow()
    collection.save()
    fill(collection, range(16, 24))
    collection.store.remove([collection.store.known()["/docs/3.md"].id])
    collection.store.close()  # as a kill leaves it: nothing followed, nothing saved
    return folder


def check_complete(folder: Path) -> None:
    collection = open_collection(folder)
    try:
        _, chunks, _ = collection.store.counts()
        assert chunks == 46
        assert len(collection.vectors) == len(collection.text) == chunks
        for query in ("elephant", "number 20", "fires"):
            ranking = rank(collection, query, hash_embedding(query), limit=5)
            texts = [row.text for row in collection.store.rows(ranking.ids.tolist()).values()]
            assert len(texts) == 5
        ids, _ = collection.text.search("door 3", 100)
        gone = {row.path for row in collection.store.rows(ids.tolist()).values()}
        assert "docs/3.md" not in gone
        assert collection.store.journal()[0] == collection.vectors.seq == collection.text.seq
    finally:
        collection.close()


def damage_nothing(folder):
    pass


def lose_all(folder):
    (folder / "vectors.usearch").unlink()
    (folder / "vectors.usearch.seal").unlink()
    shutil.rmtree(folder / "text")
    (folder / "text.seal").unlink()


def lose_the_vectors(folder):
    (folder / "vectors.usearch").unlink()


def truncate_the_vectors(folder):
    file = folder / "vectors.usearch"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit_of_the_vectors(folder):
    file = folder / "vectors.usearch"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose_the_text(folder):
    shutil.rmtree(folder / "text")


def empty_a_text_file(folder):
    next((folder / "text").glob("*.term")).write_bytes(b"")


def lose_the_text_meta(folder):
    (folder / "text" / "meta.json").unlink()


def break_the_seals(folder):
    (folder / "vectors.usearch.seal").write_text("{")
    (folder / "text.seal").write_text('{"form": 3}')


def seals_from_the_future(folder):
    for seal in folder.glob("*.seal"):
        seal.write_text(seal.read_text().replace('"seq": 32', '"seq": 99999'))


def seals_of_another_collection(folder):
    for seal in folder.glob("*.seal"):
        seal.write_text(seal.read_text().replace('"form": "', '"form": "x'))


def leave_a_half_written_file(folder):
    (folder / ".vectors.usearch.abcd.tmp").write_bytes(b"half")


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing, lose_all, lose_the_vectors, truncate_the_vectors,
        flip_a_bit_of_the_vectors, lose_the_text, empty_a_text_file, lose_the_text_meta,
        break_the_seals, seals_from_the_future, seals_of_another_collection,
        leave_a_half_written_file,
    ],
)  # fmt: skip
def test_indexes_are_mended_at_opening(folder, damage):
    damage(folder)
    check_complete(folder)
    check_complete(folder)  # and what was saved is whole


def test_an_index_that_missed_dropped_entries_is_built_anew(folder):
    older = {
        file: file.read_bytes()
        for file in (folder / "vectors.usearch", folder / "vectors.usearch.seal")
    }
    check_complete(folder)  # follows, saves and drops the journal
    for file, content in older.items():
        file.write_bytes(content)
    check_complete(folder)


def test_worn_vectors_are_built_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("uait_server_ext.knowledge.vectors.MAX_REMOVED_SHARE", 0.005)
    collection = open_collection(tmp_path / "worn")
    fill(collection, range(8))
    collection.follow()
    fill(collection, range(8))
    collection.follow()
    assert collection.vectors.is_worn
    collection.follow()
    assert not collection.vectors.is_worn
    assert len(collection.vectors) == 16  # type: ignore[unreachable]  # `follow` changed it
    collection.close()


def test_the_graph_finds_what_comparing_all_finds(tmp_path, monkeypatch):
    random = np.random.default_rng(7)
    centres = random.standard_normal((20, DIMENSION))
    vectors = centres[np.arange(2_000) % 20] + 0.5 * random.standard_normal((2_000, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = VectorIndex(tmp_path, "uid", DIMENSION)
    index.apply(np.empty(0, dtype=np.int64), np.arange(2_000), vectors)
    assert len(index) < EXACT_BELOW
    exact, similarities = index.search(vectors[5], 10)
    np.testing.assert_allclose(similarities, np.sort(vectors @ vectors[5])[::-1][:10], atol=1e-3)
    monkeypatch.setattr("uait_server_ext.knowledge.vectors.EXACT_BELOW", 0)
    found, _ = index.search(vectors[5], 10)
    assert len(set(exact.tolist()) & set(found.tolist())) >= 9


def test_similarities_of_what_is_there_and_what_is_not(tmp_path):
    index = VectorIndex(tmp_path, "uid", DIMENSION)
    query = hash_embedding("cat")
    assert np.isnan(index.similarities(query, np.array([1]))).all()
    index.apply(np.empty(0, dtype=np.int64), np.array([4]), query[None])
    near, missing = index.similarities(query, np.array([4, 5]))
    assert near == pytest.approx(1, abs=1e-3)
    assert np.isnan(missing)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    collection = open_collection(tmp_path_factory.mktemp("text") / "filled")
    fill(collection, range(8))
    collection.follow()
    yield collection
    collection.close()


@given(st.text(max_size=300))
def test_any_text_is_a_query(filled, query):
    ids, scores = filled.text.search(query, 10)
    assert len(ids) == len(scores) <= 10
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize(
    "query", ['"cat', "cat AND (", "title:cat", "cat^-1", "+cat -cat", "cat~9", "[a TO", "\\", "*"]
)
def test_query_syntax_is_plain_text(filled, query):
    ids, _ = filled.text.search(query, 10)
    assert ("cat" in query) == bool(len(ids))


def test_words_match_by_their_stems(filled):
    assert len(filled.text.search("ELEPHANTS", 10)[0]) == 2


def test_a_very_long_query_is_searched_by_its_rarest_words(filled):
    query = " ".join(f"filler{number}" for number in range(500)) + " elephant"
    assert len(filled.text.search(query, 10)[0]) == 2


def test_rarity_is_between_common_and_unheard_of(filled):
    rarity = filled.text.rarity(["someth", "eleph", "unheard"])
    assert rarity["unheard"] == 1.0
    assert 0 < rarity["someth"] < rarity["eleph"] < 1
