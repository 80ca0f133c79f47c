"""Vectors that were made before, by the digest of their text: memory first, then a SQLite file.

The file belongs to one model and one way of making its vectors; another way begins anew. It is
bounded, keeps what was used last, and loses nothing but time when it is deleted or cannot be read.
Texts are not in it. Queries are kept in memory only: what people ask is not written down here.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .models import Vectors

GRAPH_FORM = "onnx-3"  # how vectors are made; raise the number when the graph changes
MEMORY_BYTES = 16 << 20
DISK_BYTES = 256 << 20
DAY_SECONDS = 86_400
KEPT_DAYS = 60  # without being used
KEYS_AT_ONCE = 500  # SQLite's bound on parameters is far above
SCHEMA = """
CREATE TABLE IF NOT EXISTS maker (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (
    digest BLOB PRIMARY KEY, used INTEGER NOT NULL, tokens INTEGER NOT NULL, vector BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON vectors (used);
"""

Made = tuple[np.ndarray[tuple[int], np.dtype[np.float32]], int]
"""A vector, and the tokens that were read for it."""


class VectorCache:
    """The vectors of one model; may be used from any thread.

    Args:
        path: of the SQLite file; none: memory only.
        maker: names the model's files and the form that makes its vectors.
    """

    def __init__(
        self,
        path: Path | None,
        maker: str,
        dimension: int,
        *,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        row = dimension * 4
        self._path = path
        self._maker = maker
        self._bytes = row
        self._most_kept = max(1, memory_bytes // row)
        self._most_stored = max(1, disk_bytes // (row + 64))
        self._recent: OrderedDict[bytes, Made] = OrderedDict()
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        self._since_trim = 0

    def find(self, texts: Sequence[str]) -> list[Made | None]:
        """Return what is known of each text; blocks for the disk."""
        keys = [digest(text) for text in texts]
        with self._lock:
            found = {key: self._recent[key] for key in keys if key in self._recent}
            if missing := [key for key in dict.fromkeys(keys) if key not in found]:
                found |= self._stored(missing)
            self._remember(found)
        return [found.get(key) for key in keys]

    def known(self, texts: Sequence[str]) -> list[Made] | None:
        """Return the vectors of texts that are all in memory; never waits for the disk."""
        keys = [digest(text) for text in texts]
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if any(key not in self._recent for key in keys):
                return None
            for key in keys:
                self._recent.move_to_end(key)
            return [self._recent[key] for key in keys]
        finally:
            self._lock.release()

    def keep(
        self, texts: Sequence[str], vectors: Vectors, tokens: Sequence[int], *, on_disk: bool
    ) -> None:
        """Note the vectors of texts; blocks for the disk."""
        made = {
            digest(text): (vector.copy(), count)
            for text, vector, count in zip(texts, vectors, tokens, strict=True)
        }
        with self._lock:
            self._remember(made)
            if on_disk:
                self._store(made)

    def clear(self) -> None:
        """Forget everything, on the disk too."""
        with self._lock:
            self._recent.clear()
            self._close()
            if self._path is not None:
                for name in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _remember(self, made: dict[bytes, Made]) -> None:
        for key, value in made.items():
            self._recent[key] = value
            self._recent.move_to_end(key)
        while len(self._recent) > self._most_kept:
            self._recent.popitem(last=False)

    def _stored(self, keys: list[bytes]) -> dict[bytes, Made]:
        found: dict[bytes, Made] = {}
        today = int(time.time()) // DAY_SECONDS
        with self._opened() as file:
            if file is None:
                return {}
            for at in range(0, len(keys), KEYS_AT_ONCE):
                part = keys[at : at + KEYS_AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = file.execute(
                    f"SELECT digest, used, tokens, vector FROM vectors WHERE digest IN ({marks})",  # noqa: S608 - question marks only
                    part,
                ).fetchall()
                stale = [(today, key) for key, used, _, _ in rows if used != today]
                file.executemany("UPDATE vectors SET used = ? WHERE digest = ?", stale)
                for key, _, tokens, vector in rows:
                    if len(vector) == self._bytes:
                        found[key] = np.frombuffer(vector, "<f4"), tokens
        return found

    def _store(self, made: dict[bytes, Made]) -> None:
        today = int(time.time()) // DAY_SECONDS
        with self._opened() as file:
            if file is None:
                return
            rows = [(k, today, n, v.astype("<f4").tobytes()) for k, (v, n) in made.items()]
            file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
            self._since_trim += len(rows)
            if self._since_trim > self._most_stored // 20:
                self._trim(file, today)

    def _trim(self, file: sqlite3.Connection, today: int) -> None:
        """Forget what nobody asked for in long, and the oldest beyond the bound."""
        self._since_trim = 0
        file.execute("DELETE FROM vectors WHERE used < ?", (today - KEPT_DAYS,))
        (count,) = file.execute("SELECT count(*) FROM vectors").fetchone()
        if count > self._most_stored:
            file.execute(
                "DELETE FROM vectors WHERE digest IN "
                "(SELECT digest FROM vectors ORDER BY used LIMIT ?)",
                (count - self._most_stored,),
            )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection | None]:
        """Give the file within a transaction, or None where it cannot be used."""
        # a cache may be lost, a request may not: whatever the file does, go on without it
        if self._file is None:
            try:
                self._file = self._open()
            except sqlite3.Error as error:
                self._give_up(error)
        try:
            with self._file or contextlib.nullcontext():
                yield self._file
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Close the file; delete what is no database any more, so that it begins anew."""
        self._close()
        locked_or_full = isinstance(error, sqlite3.OperationalError)
        if self._path is not None and not locked_or_full:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _open(self) -> sqlite3.Connection | None:
        if self._path is None:
            return None
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.touch(mode=0o600)
        file = sqlite3.connect(self._path, check_same_thread=False, timeout=5)
        try:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=NORMAL")  # a crash may lose the last vectors, no more
            file.executescript(SCHEMA)
            with file:
                if file.execute("SELECT name FROM maker").fetchall() != [(self._maker,)]:
                    file.execute("DELETE FROM maker")
                    file.execute("DELETE FROM vectors")
                    file.execute("INSERT INTO maker VALUES (?)", (self._maker,))
                self._trim(file, int(time.time()) // DAY_SECONDS)
        except BaseException:
            file.close()
            raise
        return file


def digest(text: str) -> bytes:
    """Return what a text is known by."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
