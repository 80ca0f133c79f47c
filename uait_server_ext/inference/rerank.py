"""Texts in the order in which they answer a query.

A cross-encoder that is installed (imported: none is shipped, as no package carries one) reads the
query and each text together. Without one the embedding model ranks by late interaction
(``backends/embedding.py``) and the words that query and text share are weighed in; the answer says
so in its note.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import numpy as np

from uait_server_ext.errors import Busy

from .cache import ModelCache
from .catalogue import Catalogue, CatalogueEntry
from .embedder import LONGEST_TEXT, MOST_CALLS, USUAL_LENGTH, batches
from .models import DEFAULT_MODEL
from .runner import ModelRunner

PRIORITY = 0  # as a query: somebody waits for it
WORDS_SHARE = 0.3  # of the score without a cross-encoder that shared words make
WORD = re.compile(r"\w+")
STEM_LENGTH = 5  # of a word, that endings do not matter


class Reranking(NamedTuple):
    """A score of each text, in the order of the texts: higher answers better, from 0 to about 1."""

    model: str
    scores: list[float]
    tokens: int
    note: str | None = None


def reranking_model(
    catalogue: Catalogue, cache: ModelCache, embedding: CatalogueEntry, model: str = DEFAULT_MODEL
) -> CatalogueEntry:
    """Return the model that reranks: the one named, an installed cross-encoder, or ``embedding``.

    Looks at files. Raises ``ModelNotFound`` for a model that neither reranks nor embeds.
    """
    if model == DEFAULT_MODEL:
        rerankers = (entry for entry in catalogue.entries if entry.kind == "rerank")
        return next((entry for entry in rerankers if cache.has(entry)), embedding)
    found = catalogue.get(model)
    return found if found.kind == "embedding" else catalogue.get(model, "rerank")


class Reranker:
    """One model that reranks, over its runner."""

    def __init__(self, entry: CatalogueEntry, runner: Callable[[], ModelRunner]) -> None:
        self._entry = entry
        self._runner = runner
        self._calls = 0

    @property
    def note(self) -> str | None:
        """How it ranks, where that is not by a cross-encoder."""
        if self._entry.kind == "rerank":
            return None
        return (
            f"No cross-encoder: scored by late interaction of {self._entry.id} and by shared "
            "words. `uait models import` takes a BERT cross-encoder."
        )

    async def rerank(self, query: str, texts: Sequence[str], *, caller: str = "") -> Reranking:
        """Score texts; the longest are read first, in batches that let queries pass.

        Raises ``Busy`` when too many calls are under way, ``ModelUnavailable`` and ``WorkerDied``
        as a chat does.
        """
        if self._calls >= MOST_CALLS:
            raise Busy(
                f"{self._entry.id} is busy with {self._calls} requests. Try again in a few "
                "seconds.",
                retry_after=2,
            )
        self._calls += 1
        try:
            scores = np.zeros(len(texts), dtype=np.float64)
            tokens = 0
            for rows in batches([min(len(text), USUAL_LENGTH) for text in texts]):
                batch = [texts[row][:LONGEST_TEXT] for row in rows]
                message = {"type": "rank", "query": query[:LONGEST_TEXT], "texts": batch}
                stream = self._runner().stream(
                    message, caller=caller, priority=PRIORITY, bounded=False
                )
                async with aclosing(stream) as frames:
                    frame = await anext(frames)
                    scores[rows] = np.frombuffer(frame.body, "<f4")
                    tokens += sum(frame.message["tokens"])
        finally:
            self._calls -= 1
        if self._entry.kind != "rerank":
            scores = (1 - WORDS_SHARE) * scores + WORDS_SHARE * shared_words(query, texts)
        return Reranking(self._entry.id, scores.tolist(), tokens, self.note)


def shared_words(query: str, texts: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return which share of the query's words each text has; rare ones weigh more (0 to 1)."""
    wanted = set(_stems(query))
    stems = [set(_stems(text)) & wanted for text in texts]
    found = Counter(stem for own in stems for stem in own)
    weights = {stem: math.log1p(len(texts) / (1 + found[stem])) for stem in wanted}
    total = sum(weights.values()) or 1.0
    return np.array([sum(weights[stem] for stem in own) / total for own in stems])


def _stems(text: str) -> list[str]:
    return [word.removesuffix("s")[:STEM_LENGTH] for word in WORD.findall(text.lower())]
