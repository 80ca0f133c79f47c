"""Texts to vectors, in batches small enough that a query never waits long behind an ingest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np

from uait_server_ext.errors import Busy

from .models import EmbedPurpose
from .runner import ModelRunner

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

    def __init__(self, model: str, dimension: int, runner: Callable[[], ModelRunner]) -> None:
        self._model = model
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

    async def embed(self, texts: Sequence[str], *, purpose: EmbedPurpose) -> Vectors:
        """Return L2-normalised vectors of shape (len(texts), dimension); queries go first.

        Raises ``Busy`` when too many calls are under way, ``ModelUnavailable`` and ``WorkerDied``
        as a chat does.
        """
        if self._calls >= MOST_CALLS:
            raise Busy(
                f"{self.id} is busy with {self._calls} requests. Try again in a few seconds.",
                retry_after=2,
            )
        self._calls += 1
        try:
            vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
            for rows in batches([min(len(text), USUAL_LENGTH) for text in texts]):
                batch = [texts[row][:LONGEST_TEXT] for row in rows]
                vectors[rows] = await self._embed(batch, PRIORITY[purpose])
            return vectors
        finally:
            self._calls -= 1

    async def _embed(self, texts: list[str], priority: int) -> Vectors:
        message = {"type": "embed", "texts": texts}
        stream = self._runner().stream(message, priority=priority, bounded=False)
        async with aclosing(stream) as frames:
            frame = await anext(frames)
            return np.frombuffer(frame.body, "<f4").reshape(frame.message["shape"])


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
