"""The vector index: USearch over the chunks' vectors, derived from the row store.

Half floats, always named: USearch's default type depends on the machine. Similarities differ by
less than 1e-4 from those of the rows' 32-bit vectors. Below ``EXACT_BELOW`` vectors every one is
compared, which takes 2-3 ms and finds all; above, the graph is walked.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from usearch.index import Index

from uait_server_ext.knowledge.seal import Seal, sealed_seq
from uait_server_ext.storage.files import write_atomic

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors
    from uait_server_ext.knowledge.store import Ids

FILE = "vectors.usearch"
EXACT_BELOW = 20_000
# Removed vectors leave holes in the graph; beyond this share a rebuild is faster and smaller.
MAX_REMOVED_SHARE = 0.3
# Adding so many takes 50-100 ms; removing them 2 ms, for which Python's lock is held.
AT_ONCE = 256

Similarities = npt.NDArray[np.float32]


class VectorIndex:
    """Vectors by chunk id, in memory; ``seq`` is the journal entry up to which it is current."""

    name = FILE

    def __init__(self, folder: Path, store_uid: str, dimension: int) -> None:
        self._path = folder / FILE
        self._seal = folder / f"{FILE}.seal"
        self._form = f"{store_uid} f16 ip {dimension}"
        self._dimension = dimension
        self._lock = threading.Lock()
        self._removed = 0
        self._index = self._empty()
        self.seq: int | None = sealed_seq(self._seal, folder, self._form)
        if self.seq is not None:
            try:
                self._index.load(str(self._path))
            except (RuntimeError, ValueError):  # another version's file format
                self.clear()
        self.saved_seq: int | None = self.seq

    def __len__(self) -> int:
        return len(self._index)

    @property
    def is_worn(self) -> bool:
        """Whether so many vectors were removed that a rebuild pays."""
        return self._removed > MAX_REMOVED_SHARE * max(len(self._index), 1_000)

    def clear(self) -> None:
        """Start anew with no vectors."""
        with self._lock:
            self._index = self._empty()
            self._removed = 0
            self.seq = self.saved_seq = None

    def apply(self, gone: Ids, ids: Ids, vectors: Vectors) -> None:
        """Remove and add chunks; an id that is there stays as it is, as chunks never change.

        It is done in parts, between which searches have their turn.
        """
        for start in range(0, len(gone), AT_ONCE):
            part = gone[start : start + AT_ONCE].astype(np.uint64)
            with self._lock:
                if len(self._index):
                    self._removed += int(self._index.remove(part))
        for start in range(0, len(ids), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            with self._lock:
                new = ~self._contains(ids[rows])
                if new.any():
                    keys = ids[rows][new].astype(np.uint64)
                    self._index.add(keys, vectors[rows][new], threads=1)

    def finish(self, seq: int) -> None:
        """Note that everything up to journal entry ``seq`` was applied."""
        self.seq = seq

    def search(self, query: Vectors, limit: int) -> tuple[Ids, Similarities]:
        """Return ids and cosine similarities of the nearest chunks, nearest first."""
        with self._lock:
            if not len(self._index):
                return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
            exact = len(self._index) < EXACT_BELOW
            matches = self._index.search(query, limit, exact=exact, threads=1)
        return matches.keys.astype(np.int64), (1.0 - matches.distances).astype(np.float32)

    def similarities(self, query: Vectors, ids: Ids) -> Similarities:
        """Return the cosine similarity of each chunk; NaN for one that is not there."""
        found = np.full(len(ids), np.nan, dtype=np.float32)
        with self._lock:
            if not len(ids) or not len(self._index):
                return found
            here = self._contains(ids)
            if here.any():
                vectors = self._index.get(ids[here].astype(np.uint64), dtype="f32")
                found[here] = np.asarray(vectors, dtype=np.float32) @ query
        return found

    def save(self) -> None:
        """Write the index beside the old file, put it in its place, then seal it."""
        if self.seq is None or self.seq == self.saved_seq:
            return
        with self._lock:
            content = self._index.save(None)
        assert content is not None
        write_atomic(self._path, content)
        Seal(self._form, self.seq).write(self._seal, [self._path])
        self.saved_seq = self.seq

    def _contains(self, ids: Ids) -> npt.NDArray[np.bool_]:
        return np.asarray(self._index.contains(ids.astype(np.uint64)), dtype=bool).reshape(-1)

    def _empty(self) -> Index:
        # Inner product of normalised vectors is their cosine.
        return Index(ndim=self._dimension, metric="ip", dtype="f16")
