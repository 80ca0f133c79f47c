"""The row store of one collection: a DuckDB file with documents, chunks, vectors and the journal.

It is the truth; the indexes are derived from it by following its journal. All calls block and are
made in threads. One thread writes at a time; readers have a cursor of their own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt

from uait_server_ext.errors import CollectionNotFound, Conflict, Unavailable
from uait_server_ext.knowledge.migrations import migrate
from uait_server_ext.knowledge.models import DocumentInfo, PendingFile, Place
from uait_server_ext.knowledge.reading.chunk import Passage

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors

Ids = npt.NDArray[np.int64]

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,
    # DuckDB must neither fetch extensions nor read other files.
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "enable_external_access": False,
    # A file that DuckDB 2 creates can then be opened by DuckDB 1.5 too.
    "storage_compatibility_version": "v1.0.0",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A folder or file that was added: its absolute path and what people see for it."""

    path: str
    shown: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: what it is known by, what people see, and how it stood on the disk."""

    path: str
    shown: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class KnownDocument:
    """What the store knows of a document's file."""

    id: int
    shown: str
    sha256: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to write: ``indexed`` and ``vectors`` have one entry for each passage."""

    file: SourceFile
    sha256: str
    title: str
    media_type: str
    passages: Sequence[Passage]
    indexed: Sequence[str]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A chunk with what a hit shows of its document."""

    id: int
    document_id: int
    path: str
    title: str
    place: Place
    text: str


class Store:
    """Open or create the row store at ``path``.

    Raises:
        Conflict: another process has the file open, or a newer UAIT wrote it.
        Unavailable: the file is damaged.

    """

    def __init__(self, path: Path, *, model: str, dimension: int) -> None:
        self._lock = threading.Lock()
        self._readers = threading.Condition()
        self._reading = 0
        self._closed = False
        try:
            self._connection = duckdb.connect(str(path), config=CONFIG)
        except duckdb.Error as error:
            if "lock" in str(error).lower():
                raise Conflict(
                    f"The collection `{path.parent.name}` is open in another process: use that "
                    "server, or stop it first."
                ) from error
            raise Unavailable(
                f"The rows of collection `{path.parent.name}` cannot be opened: restore the file "
                f"{path.name} from a backup, or delete the collection and add its sources again."
            ) from error
        try:
            migrate(self._connection, dimension=dimension)
            if not self._meta():
                first = {"uid": secrets.token_hex(8), "model": model, "dimension": str(dimension)}
                first |= {"generation": "0", "journal_pruned": "0"}
                self._connection.execute(
                    "INSERT INTO meta SELECT unnest(?), unnest(?)",
                    [list(first), list(first.values())],
                )
            meta = self._meta()
        except BaseException:
            self._connection.close()
            raise
        self.uid = meta["uid"]
        self.model = meta["model"]
        self.dimension = int(meta["dimension"])

    def close(self) -> None:
        """Close the file when those who read it are done; the store cannot be used after."""
        with self._lock, self._readers:
            self._closed = True
            self._readers.wait_for(lambda: not self._reading)
            self._connection.close()

    # Writing: each method is one transaction.

    def take_on(self, sources: Sequence[Source], files: Sequence[SourceFile], now: str) -> None:
        """Note sources, and files as pending before the first is read; old failures go."""
        with self._transaction() as connection:
            for source in sources:
                connection.execute("DELETE FROM sources WHERE path = ?", [source.path])
                connection.execute(
                    "INSERT INTO sources VALUES (?, ?, ?)", [source.path, source.shown, now]
                )
                connection.execute(
                    "DELETE FROM files WHERE error IS NOT NULL AND "
                    "(path = ? OR starts_with(path, ?))",
                    [source.path, below(source.path)],
                )
            _forget_files(connection, [file.path for file in files])
            connection.execute(
                "INSERT INTO files SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[]), NULL",
                [[file.path for file in files], [file.shown for file in files]],
            )

    def write(self, documents: Sequence[NewDocument], now: str) -> list[bool]:
        """Write documents with their chunks in the place of earlier versions.

        Returns for each whether it was there before.
        """
        with self._transaction() as connection:
            paths = [document.file.path for document in documents]
            earlier: dict[str, int] = dict(
                connection.execute(
                    "SELECT path, id FROM documents WHERE path IN (SELECT unnest(?))", [paths]
                ).fetchall()
            )
            _delete_documents(connection, list(earlier.values()))
            _forget_files(connection, paths)
            fresh = iter(_next_values(connection, "document_ids", len(paths) - len(earlier)))
            ids = [earlier[path] if path in earlier else next(fresh) for path in paths]
            _insert_documents(connection, documents, ids, now)
            _insert_chunks(connection, documents, ids)
            _grow(connection, len(documents))
        return [path in earlier for path in paths]

    def remove(self, ids: Sequence[int]) -> None:
        """Remove documents with their chunks."""
        with self._transaction() as connection:
            paths = connection.execute(
                "SELECT path FROM documents WHERE id IN (SELECT unnest(?))", [list(ids)]
            ).fetchall()
            _delete_documents(connection, list(ids))
            _forget_files(connection, [path for (path,) in paths])
            _grow(connection, len(ids))

    def settle(self, unchanged: Sequence[SourceFile], failed: Mapping[SourceFile, str]) -> None:
        """Take files off the pending list: content as before, or not readable (with the error)."""
        with self._transaction() as connection:
            for file in unchanged:
                connection.execute(
                    "UPDATE documents SET size_bytes = ?, modified_ns = ? WHERE path = ?",
                    [file.size_bytes, file.modified_ns, file.path],
                )
            _forget_files(connection, [file.path for file in (*unchanged, *failed)])
            for file, error in failed.items():
                connection.execute(
                    "INSERT INTO files VALUES (?, ?, ?)", [file.path, file.shown, error]
                )

    def forget(self, paths: Sequence[str]) -> None:
        """Take files off the pending and failed lists."""
        with self._transaction() as connection:
            _forget_files(connection, paths)

    def prune_journal(self, up_to: int) -> None:
        """Drop journal entries that every index has saved."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM journal WHERE seq <= ?", [up_to])
            connection.execute(
                "UPDATE meta SET value = ? WHERE key = 'journal_pruned'", [str(up_to)]
            )

    # Reading: any thread, also while another writes.

    def known(self, under: str | None = None) -> dict[str, KnownDocument]:
        """Return documents by absolute path: all, or the one at or those below ``under``."""
        query = "SELECT path, id, shown, sha256, size_bytes, modified_ns FROM documents"
        parameters = []
        if under is not None:
            query += " WHERE path = ? OR starts_with(path, ?)"
            parameters = [under, below(under)]
        return {path: KnownDocument(*rest) for path, *rest in self._all(query, parameters)}

    def documents(self, offset: int, limit: int) -> list[DocumentInfo]:
        """Return a page of the documents, by path."""
        rows = self._all(
            "SELECT d.id, d.shown, d.title, d.media_type, d.size_bytes, d.ingested_at, "
            "(SELECT count(*) FROM chunks c WHERE c.document_id = d.id) "
            "FROM documents d ORDER BY d.shown, d.id LIMIT ? OFFSET ?",
            [limit, offset],
        )
        return [
            DocumentInfo(
                id=row[0], path=row[1], title=row[2], media_type=row[3], size_bytes=row[4],
                ingested_at=row[5], chunks=row[6],
            )
            for row in rows
        ]  # fmt: skip

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of documents and chunks, and the generation."""
        ((documents, chunks, generation),) = self._all(
            "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM chunks), "
            "(SELECT value FROM meta WHERE key = 'generation')"
        )
        return documents, chunks, int(generation)

    def sources(self) -> list[Source]:
        """Return the folders and files that were added."""
        return [Source(*row) for row in self._all("SELECT path, shown FROM sources ORDER BY path")]

    def pending(self) -> list[Source]:
        """Return the files that an ingest took on and did not finish."""
        rows = self._all("SELECT path, shown FROM files WHERE error IS NULL ORDER BY path")
        return [Source(*row) for row in rows]

    def open_files(self) -> tuple[list[PendingFile], list[PendingFile]]:
        """Return what is pending and what failed."""
        rows = self._all("SELECT shown, error FROM files ORDER BY shown")
        files = [PendingFile(path=shown, error=error) for shown, error in rows]
        return [f for f in files if f.error is None], [f for f in files if f.error is not None]

    def rows(self, ids: Sequence[int]) -> dict[int, ChunkRow]:
        """Return chunks by id; those that are gone are left out.

        Two queries with the ids written out: only so does DuckDB look them up by its index, which
        takes 3 ms in 50,000 chunks, where the join takes 8.
        """
        chunks = self._all(
            "SELECT id, document_id, place_start, place_end, label, page, cell, line, text "  # noqa: S608
            f"FROM chunks WHERE id IN ({_listed(ids)})"
        )
        documents = {
            id_: (shown, title)
            for id_, shown, title in self._all(
                "SELECT id, shown, title FROM documents "  # noqa: S608
                f"WHERE id IN ({_listed(row[1] for row in chunks)})"
            )
        }
        return {
            row[0]: ChunkRow(
                id=row[0],
                document_id=row[1],
                path=documents[row[1]][0],
                title=documents[row[1]][1],
                place=Place(
                    start=row[2], end=row[3], label=row[4], page=row[5], cell=row[6], line=row[7]
                ),
                text=row[8],
            )
            for row in chunks
            if row[1] in documents
        }

    def vectors_by_digest(self, digests: Sequence[str]) -> dict[str, Vectors]:
        """Return vectors of texts that are embedded already, by the digest of the text."""
        rows = self._numpy(
            "SELECT digest, any_value(vector) AS vector FROM chunks "
            "WHERE digest IN (SELECT unnest(?::VARCHAR[])) GROUP BY digest",
            [list(digests)],
        )
        return dict(zip(rows["digest"], rows["vector"], strict=True))

    def journal(self) -> tuple[int, int]:
        """Return the journal's last entry and the last one that was dropped."""
        ((head, pruned),) = self._all(
            "SELECT (SELECT max(seq) FROM journal), "
            "(SELECT value FROM meta WHERE key = 'journal_pruned')"
        )
        return max(head or 0, int(pruned)), int(pruned)

    def touched(self, after: int) -> Ids:
        """Return ids of chunks that were added or removed after a journal entry."""
        rows = self._numpy("SELECT DISTINCT chunk_id FROM journal WHERE seq > ?", [after])
        return np.sort(rows["chunk_id"].astype(np.int64))

    def chunk_ids(self) -> Ids:
        """Return the ids of all chunks."""
        ids: Ids = self._numpy("SELECT id FROM chunks ORDER BY id")["id"].astype(np.int64)
        return ids

    def contents(self, ids: Ids) -> tuple[Ids, list[str], Vectors]:
        """Return (ids, texts to index, vectors) of those chunks that exist."""
        rows = self._numpy(
            "SELECT id, indexed, vector FROM chunks WHERE id IN (SELECT unnest(?::BIGINT[]))",
            [ids.tolist()],
        )
        found = rows["id"].astype(np.int64)
        vectors = np.empty((len(found), self.dimension), dtype=np.float32)
        for row, vector in enumerate(rows["vector"]):
            vectors[row] = vector
        return found, [str(text) for text in rows["indexed"]], vectors

    def _meta(self) -> dict[str, str]:
        return dict(self._connection.execute("SELECT key, value FROM meta").fetchall())

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _all(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(query, list(parameters)).fetchall()

    def _numpy(self, query: str, parameters: Sequence[object] = ()) -> dict[str, Any]:
        with self._cursor() as cursor:
            return cursor.execute(query, list(parameters)).fetchnumpy()

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a reader a cursor of its own; the file stays open as long.

        Raises:
            CollectionNotFound: the store has been closed.
        """
        with self._readers:
            if self._closed:
                raise CollectionNotFound(
                    "The collection was deleted meanwhile: add documents to make it anew."
                )
            self._reading += 1
            cursor = self._connection.cursor()
        try:
            with cursor:
                yield cursor
        finally:
            with self._readers:
                self._reading -= 1
                self._readers.notify_all()


def digest_of(text: str) -> str:
    """Return the digest by which a text's vector is found again."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _listed(ids: Iterable[int]) -> str:
    """Write ids out for SQL; NULL, which nothing equals, where there are none."""
    return ", ".join(str(int(id_)) for id_ in ids) or "NULL"


def below(path: str) -> str:
    """Return how the paths of everything in the folder ``path`` begin."""
    return path.rstrip(os.sep) + os.sep


def _next_values(connection: duckdb.DuckDBPyConnection, sequence: str, number: int) -> list[int]:
    rows = connection.execute(f"SELECT nextval('{sequence}') FROM range({number})").fetchall()  # noqa: S608
    return sorted(value for (value,) in rows)


def _forget_files(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> None:
    connection.execute(
        "DELETE FROM files WHERE path IN (SELECT unnest(?::VARCHAR[]))", [list(paths)]
    )


def _grow(connection: duckdb.DuckDBPyConnection, by: int) -> None:
    connection.execute(
        "UPDATE meta SET value = CAST(CAST(value AS BIGINT) + ? AS VARCHAR) "
        "WHERE key = 'generation'",
        [by],
    )


def _delete_documents(connection: duckdb.DuckDBPyConnection, ids: list[int]) -> None:
    if not ids:
        return
    connection.execute(
        "INSERT INTO journal SELECT nextval('journal_seq'), 'remove', id FROM chunks "
        "WHERE document_id IN (SELECT unnest(?))",
        [ids],
    )
    connection.execute("DELETE FROM chunks WHERE document_id IN (SELECT unnest(?))", [ids])
    connection.execute("DELETE FROM documents WHERE id IN (SELECT unnest(?))", [ids])


def _insert_documents(
    connection: duckdb.DuckDBPyConnection,
    documents: Sequence[NewDocument],
    ids: Sequence[int],
    now: str,
) -> None:
    rows = [
        (
            id_, document.file.path, document.file.shown, document.title, document.media_type,
            document.file.size_bytes, document.file.modified_ns, document.sha256, now,
        )
        for id_, document in zip(ids, documents, strict=True)
    ]  # fmt: skip
    columns = [list(column) for column in zip(*rows, strict=True)]
    values = ", ".join("unnest(?)" for _ in columns)
    connection.execute(f"INSERT INTO documents SELECT {values}", columns)


def _insert_chunks(
    connection: duckdb.DuckDBPyConnection, documents: Sequence[NewDocument], ids: Sequence[int]
) -> None:
    """Insert through a registered table of arrays: a row at a time takes ten times as long."""
    passages = [passage for document in documents for passage in document.passages]
    indexed = [text for document in documents for text in document.indexed]
    vectors = np.empty(len(passages), dtype=object)
    for row, vector in enumerate(vector for document in documents for vector in document.vectors):
        vectors[row] = np.ascontiguousarray(vector, dtype=np.float32)
    chunk_ids = np.array(_next_values(connection, "chunk_ids", len(passages)), dtype=np.int64)
    columns = {
        "id": chunk_ids,
        "document_id": np.repeat(ids, [len(document.passages) for document in documents]),
        "place_start": np.array([passage.start for passage in passages]),
        "place_end": np.array([passage.end for passage in passages]),
        "label": _texts([passage.label for passage in passages]),
        "page": np.array([passage.page or 0 for passage in passages]),
        "cell": np.array([passage.cell or 0 for passage in passages]),
        "line": np.array([passage.line or 0 for passage in passages]),
        "text": _texts([passage.text for passage in passages]),
        "indexed": _texts(indexed),
        "digest": _texts([digest_of(text) for text in indexed]),
        "vector": vectors,
    }
    connection.register("new_chunks", columns)
    try:
        connection.execute(
            "INSERT INTO chunks SELECT id, document_id, place_start, place_end, label, "
            "nullif(page, 0), nullif(cell, 0), nullif(line, 0), text, indexed, digest, vector "
            "FROM new_chunks"
        )
        connection.execute(
            "INSERT INTO journal SELECT nextval('journal_seq'), 'add', id FROM new_chunks"
        )
    finally:
        connection.unregister("new_chunks")


def _texts(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    return np.array(texts, dtype=object)
