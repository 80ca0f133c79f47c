"""The row store: whole documents, a journal that tells the indexes all, a file that is locked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.knowledge.fakes import DIMENSION, hash_embedding
from uait_server_ext.errors import Conflict, Unavailable
from uait_server_ext.knowledge import migrations
from uait_server_ext.knowledge.reading.chunk import Passage
from uait_server_ext.knowledge.store import NewDocument, Source, SourceFile, Store, digest_of

NAMES = st.sampled_from([f"{letter}.md" for letter in "abcde"])
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
                         min_size=1, max_size=20), min_size=1, max_size=4)  # fmt: skip


def document(name: str, texts: list[str]) -> NewDocument:
    passages = [Passage(0, len(text), text, "line 1", line=1) for text in texts]
    vectors = np.stack([hash_embedding(text) for text in texts])
    file = SourceFile(f"/docs/{name}", f"docs/{name}", 10, 20)
    return NewDocument(file, digest_of("".join(texts)), name, "text/x", passages, texts, vectors)


class StoreMachine(RuleBasedStateMachine):
    """The store beside a dictionary of what it must hold, reopened and indexed at any time."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = self.open()
        self.documents: dict[str, list[str]] = {}
        self.pending: set[str] = set()
        self.failed: dict[str, str] = {}
        self.index: dict[int, str] = {}
        self.followed = 0

    def open(self):
        return Store(self.folder / "rows.duckdb", model="hash", dimension=DIMENSION)

    @rule(names=st.sets(NAMES))
    def take_on(self, names):
        files = [SourceFile(f"/docs/{name}", f"docs/{name}", 1, 1) for name in sorted(names)]
        self.store.take_on([Source("/docs", "docs")], files, "now")
        self.pending |= names
        self.failed = {}

    @rule(batch=st.dictionaries(NAMES, TEXTS, min_size=1))
    def write(self, batch):
        documents = [document(name, texts) for name, texts in batch.items()]
        was_there = self.store.write(documents, "now")
        assert was_there == [name in self.documents for name in batch]
        self.documents |= batch
        self.pending -= set(batch)
        for name in batch:
            self.failed.pop(name, None)

    @precondition(lambda self: self.documents)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.documents)))
        self.store.remove([self.store.known()[f"/docs/{name}"].id])
        del self.documents[name]
        self.pending.discard(name)
        self.failed.pop(name, None)

    @rule(name=NAMES)
    def fail(self, name):
        self.store.settle([], {SourceFile(f"/docs/{name}", f"docs/{name}", 1, 1): "broken"})
        self.pending.discard(name)
        self.failed[name] = "broken"

    @rule()
    def follow(self):
        """Do what a derived index does: apply the journal since the last time."""
        head, pruned = self.store.journal()
        assert pruned <= self.followed <= head
        touched = self.store.touched(self.followed)
        ids, texts, _ = self.store.contents(touched)
        for gone in set(touched.tolist()) - set(ids.tolist()):
            self.index.pop(gone, None)
        self.index.update(zip(ids.tolist(), texts, strict=True))
        self.followed = head
        assert sorted(self.index.values()) == sorted(chain(*self.documents.values()))

    @rule()
    def prune(self):
        self.store.prune_journal(self.followed)

    @rule()
    def reopen(self):
        self.store.close()
        self.store = self.open()

    @invariant()
    def holds_the_documents(self):
        count, chunks, _ = self.store.counts()
        assert count == len(self.documents)
        assert chunks == sum(map(len, self.documents.values()))
        found = {info.path: info.chunks for info in self.store.documents(0, 100)}
        assert found == {f"docs/{name}": len(texts) for name, texts in self.documents.items()}

    @invariant()
    def knows_what_is_left(self):
        pending, failed = self.store.open_files()
        assert [file.path for file in pending] == [f"docs/{name}" for name in sorted(self.pending)]
        assert {file.path[5:]: file.error for file in failed} == self.failed

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=12)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "rows.duckdb", model="hash", dimension=DIMENSION)
    yield store
    store.close()


def test_a_changed_document_keeps_its_id_and_gets_new_chunks(store):
    store.write([document("a.md", ["one", "two"])], "now")
    before = store.known()["/docs/a.md"].id, store.chunk_ids().tolist()
    store.write([document("a.md", ["one"])], "later")
    after = store.known()["/docs/a.md"].id, store.chunk_ids().tolist()
    assert after[0] == before[0]
    assert not set(after[1]) & set(before[1])


def test_each_committed_document_grows_the_generation(store):
    store.write([document("a.md", ["one"]), document("b.md", ["two"])], "now")
    store.remove([store.known()["/docs/a.md"].id])
    assert store.counts() == (1, 1, 3)


def test_a_failed_transaction_leaves_nothing(store):
    broken = document("a.md", ["one", "two"])
    broken = replace(broken, vectors=np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(duckdb.Error):
        store.write([document("b.md", ["kept out too"]), broken], "now")
    assert store.counts() == (0, 0, 0)
    store.write([document("b.md", ["one"])], "now")
    assert store.counts() == (1, 1, 1)


def test_known_documents_below_a_folder(store):
    for name in ("docs/a.md", "docs2/b.md", "docs/deep/c.md"):
        store.write([_at(document("x", ["text"]), f"/{name}")], "now")
    assert sorted(store.known("/docs")) == ["/docs/a.md", "/docs/deep/c.md"]
    assert sorted(store.known("/docs2/b.md")) == ["/docs2/b.md"]


def test_vectors_agree_with_the_databases_own_arithmetic(store):
    store.write([document("a.md", ["the cat sat", "on the mat"])], "now")
    _, texts, vectors = store.contents(store.chunk_ids())
    query = hash_embedding("cat")
    in_sql = store._all(
        "SELECT indexed, array_inner_product(vector, ?::FLOAT[384]) FROM chunks", [query.tolist()]
    )
    assert dict(in_sql) == pytest.approx(dict(zip(texts, vectors @ query, strict=True)), abs=1e-4)


def test_a_second_process_is_told_who_has_the_file(store, tmp_path):
    script = (
        "import sys; from pathlib import Path; from uait_server_ext.errors import Conflict\n"
        "from uait_server_ext.knowledge.store import Store\n"
        "try: Store(Path(sys.argv[1]), model='hash', dimension=384)\n"
        "except Conflict as error: print(error.detail)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rows.duckdb")],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    assert "open in another process" in answer.stdout


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "rows.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable, match="backup"):
        Store(tmp_path / "rows.duckdb", model="hash", dimension=DIMENSION)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path, monkeypatch):
    newer = (*migrations.MIGRATIONS, ("m999_later", "CREATE TABLE later (x INTEGER)"))
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", newer)
        Store(tmp_path / "rows.duckdb", model="hash", dimension=DIMENSION).close()
    with pytest.raises(Conflict, match="update UAIT"):
        Store(tmp_path / "rows.duckdb", model="hash", dimension=DIMENSION)


def test_an_older_file_is_brought_up_to_date(tmp_path, monkeypatch):
    path = tmp_path / "rows.duckdb"
    store = Store(path, model="hash", dimension=DIMENSION)
    store.write([document("a.md", ["one"])], "now")
    store.close()
    step = ("m999_later", "CREATE TABLE later (x INTEGER); INSERT INTO later VALUES (7)")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, step))
    for _ in range(2):
        store = Store(path, model="hash", dimension=DIMENSION)
        assert store._all("SELECT x FROM later") == [(7,)]
        assert store.counts() == (1, 1, 1)
        store.close()


def _at(document: NewDocument, path: str) -> NewDocument:
    return replace(document, file=SourceFile(path, path, 1, 1))
