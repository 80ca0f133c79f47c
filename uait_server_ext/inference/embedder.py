"""Texts to vectors, in batches small enough that a query never waits long behind an ingest.

What was embedded before is taken from the cache, if there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np

from uait_server_ext.errors import Busy

from .backends.base import Embedded
from .models import EmbedPurpose
from .runner import ModelRunner
from .vector_cache import Made, VectorCache

if TYPE_CHECKING:
    from .models import Vectors

PRIORITY: dict[EmbedPurpose, int] = {"query": 0, "ingest": 1}
MOST_TEXTS = 16
# Padded characters in a batch: about 1,000 tokens, a fifth of a second on two cores. Larger batches
# are not faster: the matrices fill the cores long before.
MOST_CHARACTERS = 5_000
LONGEST_TEXT = 20_000  # the model reads 256 tokens; no text needs more characters for them
USUAL_LENGTH = 1_300  # characters of 256 tokens: what a longer text costs
MOST_CALLS = 64


class BatchingEmbedder:
    """The ``Embedder`` of the knowledge base over one model runner."""

    def __init__(
        self,
        model: str,
        dimension: int,
        runner: Callable[[], ModelRunner],
        *,
        cache: VectorCache | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._dimension = dimension
        self._runner = runner
        self._calls = 0

    @property
    def id(self) -> str:
        """The model id, recorded with every collection."""
        return self._model

    @property
    def dimension(self) -> int:
        """Numbers in one vector."""
        return self._dimension

    async def embed(
        self, texts: Sequence[str], *, purpose: EmbedPurpose, caller: str = ""
    ) -> Vectors:
        """Return L2-normalised vectors of shape (len(texts), dimension); queries go first.

        Raises ``Busy`` when too many calls are under way, ``ModelUnavailable`` and ``WorkerDied``
        as a chat does.
        """
        return (await self.embed_counted(texts, purpose=purpose, caller=caller)).vectors

    async def embed_counted(
        self, texts: Sequence[str], *, purpose: EmbedPurpose, caller: str = ""
    ) -> Embedded:
        """Return the vectors, and the tokens that were read of each text; raises as ``embed``."""
        if self._calls >= MOST_CALLS:
            raise Busy(
                f"{self.id} is busy with {self._calls} requests. Try again in a few seconds.",
                retry_after=2,
            )
        self._calls += 1
        try:
            vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
            tokens = [0] * len(texts)
            missing = await self._look_up(texts, purpose, vectors, tokens)
            for part in batches([min(len(texts[row]), USUAL_LENGTH) for row in missing]):
                rows = [missing[at] for at in part]
                batch = [texts[row][:LONGEST_TEXT] for row in rows]
                made = await self._embed(batch, PRIORITY[purpose], caller)
                vectors[rows] = made.vectors
                for row, count in zip(rows, made.tokens, strict=True):
                    tokens[row] = count
                await self._keep([texts[row] for row in rows], made, purpose)
            return Embedded(vectors, tokens)
        finally:
            self._calls -= 1

    async def _look_up(
        self, texts: Sequence[str], purpose: EmbedPurpose, vectors: Vectors, tokens: list[int]
    ) -> list[int]:
        """Fill in what the cache has; return the rows of what it has not."""
        if self._cache is None:
            return list(range(len(texts)))
        known: Sequence[Made | None] | None = self._cache.known(texts)
        if known is None and purpose == "query":
            known = [None] * len(texts)  # queries are not on the disk: do not wait for it
        if known is None:
            known = await asyncio.to_thread(self._cache.find, texts)
        for row, made in enumerate(known):
            if made is not None:
                vectors[row], tokens[row] = made
        return [row for row, made in enumerate(known) if made is None]

    async def _keep(self, texts: list[str], made: Embedded, purpose: EmbedPurpose) -> None:
        if self._cache is not None:
            on_disk = purpose == "ingest"
            keep = self._cache.keep
            await asyncio.to_thread(keep, texts, made.vectors, made.tokens, on_disk=on_disk)

    async def _embed(self, texts: list[str], priority: int, caller: str) -> Embedded:
        message = {"type": "embed", "texts": texts}
        stream = self._runner().stream(message, caller=caller, priority=priority, bounded=False)
        async with aclosing(stream) as frames:
            frame = await anext(frames)
            vectors = np.frombuffer(frame.body, "<f4").reshape(frame.message["shape"])
            return Embedded(vectors, frame.message["tokens"])


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield row numbers in batches, the longest texts first, so that little is padding."""
    batch: list[int] = []
    longest = 1
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        full = len(batch) == MOST_TEXTS or longest * (len(batch) + 1) > MOST_CHARACTERS
        if batch and full:
            yield batch
            batch = []
        if not batch:
            longest = max(1, lengths[row])
        batch.append(row)
    if batch:
        yield batch
