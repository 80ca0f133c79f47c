"""Small real stand-ins for the models: an embedder that hashes words, a chat model that says."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uait_server_ext.errors import ModelNotFound
from uait_server_ext.inference.models import (
    ChatDone,
    ChatEvent,
    ChatRequest,
    EmbedPurpose,
    TextDelta,
    Usage,
)

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors

DIMENSION = 384


def hash_embedding(text: str) -> Vectors:
    """Return a bag of words as a normalised vector: texts that share words are near each other."""
    vector = np.full(DIMENSION, 1e-3, dtype=np.float32)
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % DIMENSION] += 1
    return vector / np.linalg.norm(vector)


class HashEmbedder:
    """An embedder by `hash_embedding` that counts what it was given and can be slow."""

    def __init__(self, model: str = "hash-384", seconds_each: float = 0.0) -> None:
        self.id = model
        self.dimension = DIMENSION
        self.seconds_each = seconds_each
        self.ingested = 0

    async def embed(self, texts: Sequence[str], *, purpose: EmbedPurpose) -> Vectors:
        if purpose == "ingest":
            self.ingested += len(texts)
        await asyncio.sleep(self.seconds_each * len(texts))
        return np.stack([hash_embedding(text) for text in texts])


class SayingChat:
    """A chat model that says what it is told to, keeps its prompts, and can fail."""

    def __init__(self, says: str = "It is so.", error: Exception | None = None) -> None:
        self.says = says
        self.error = error
        self.prompts: list[str] = []
        self.closed = False

    def check(self, model: str) -> None:
        if model == "unknown":
            raise ModelNotFound("No such model.")

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        self.prompts.append(request.messages[-1].content)
        try:
            for word in self.says.split(" "):
                await asyncio.sleep(0)
                yield TextDelta(text=f"{word} ")
            if self.error:
                raise self.error
            yield ChatDone(
                text=self.says,
                model=request.model,
                backend="saying",
                finish_reason="stop",
                usage=Usage(prompt_tokens=7, completion_tokens=3),
                first_token_seconds=0.0,
                seconds=0.0,
            )
        finally:
            self.closed = True
