"""One collection: the row store, and the two indexes that follow its journal.

::

    rows.duckdb ── journal ──┬─► vectors.usearch   in memory, saved now and then
                             └─► text/             committed each time it follows

An index that is missing, damaged or too far behind is built anew from the rows; a kill at any
moment leaves the rows whole and the indexes some entries behind.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from uait_server_ext.knowledge.fulltext import FullText
from uait_server_ext.knowledge.store import Store
from uait_server_ext.knowledge.vectors import VectorIndex

ROWS = "rows.duckdb"
BATCH = 5_000


class Collection:
    """Open or create the collection in ``folder``; blocks, so call it in a thread.

    Raises:
        Conflict: another process has it open, or a newer UAIT wrote it.
        Unavailable: the rows are damaged.

    """

    def __init__(self, folder: Path, *, model: str, dimension: int, log: logging.Logger) -> None:
        self.name = folder.name
        self.folder = folder
        self._log = log
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.store = Store(folder / ROWS, model=model, dimension=dimension)
        try:
            self.vectors = VectorIndex(folder, self.store.uid, self.store.dimension)
            self.text = FullText(folder, self.store.uid)
            self.follow()
            self._verify()
            self.save()
        except BaseException:
            self.store.close()
            raise

    def follow(self) -> None:
        """Bring the indexes up to the journal's last entry."""
        with self._lock:
            head, pruned = self.store.journal()
            if self.vectors.is_worn:
                self.vectors.clear()
            for index in (self.vectors, self.text):
                if index.seq is not None and not pruned <= index.seq <= head:
                    self._log.warning("%s: %s does not fit the rows", self.name, index.name)
                    index.clear()
            for since in {self.vectors.seq, self.text.seq} - {head}:
                self._follow(since, head)

    def _follow(self, since: int | None, head: int) -> None:
        vectors_too, text_too = self.vectors.seq == since, self.text.seq == since
        touched = self.store.chunk_ids() if since is None else self.store.touched(since)
        try:
            for start in range(0, len(touched), BATCH):
                batch = touched[start : start + BATCH]
                ids, texts, vectors = self.store.contents(batch)
                gone = np.setdiff1d(batch, ids, assume_unique=True)
                if vectors_too:
                    self.vectors.apply(gone, ids, vectors)
                if text_too:
                    self.text.apply(gone, ids, texts)
            if vectors_too:
                self.vectors.finish(head)
            if text_too:
                self.text.finish(head)
        except BaseException:
            self.text.abandon()
            raise

    def _verify(self) -> None:
        """Build an index anew that has not as many entries as there are chunks."""
        _, chunks, _ = self.store.counts()
        for index in (self.vectors, self.text):
            if len(index) != chunks:
                self._log.warning("%s: %s has lost entries", self.name, index.name)
                index.clear()
        self.follow()

    def save(self) -> None:
        """Save the vector index and drop what both indexes have of the journal."""
        with self._lock:
            self.vectors.save()
            _, pruned = self.store.journal()
            saved = min(self.vectors.saved_seq or 0, self.text.seq or 0)
            if saved > pruned:
                self.store.prune_journal(saved)

    def close(self) -> None:
        """Save and close."""
        try:
            self.follow()
            self.save()
        finally:
            self.store.close()

    def disk_bytes(self) -> int:
        """Return the size of all files of the collection."""
        total = 0
        for file in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # an index file that has just been merged away
                total += file.stat().st_size if file.is_file() else 0
        return total
