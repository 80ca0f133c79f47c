"""`POST /embeddings` of OpenAI's wire format, and `POST /rerank` as Cohere and Jina have it."""

from __future__ import annotations

import base64
from typing import Literal

from pydantic import ConfigDict, Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.schema import Schema

from .errors import OPENAI
from .messages import Given, refused
from .wire import CompletionUsage, Harmless, Whole, Wire, new_id

MAX_TEXTS = 2048


class EmbeddingRequest(Harmless):
    """Texts whose meaning is wanted as vectors."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(description="Model id, or `auto` for the default.")
    input: str | list[str] = Field(description="Text; token ids are not taken.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="The model's own, if given.")


class EmbeddingItem(Wire):
    """The vector of one text: numbers, or their bytes (float32, little-endian) in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Whole):
    """The vectors of all texts, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: CompletionUsage


class RerankDocument(Given):
    """A text in the form of an object."""

    text: str


class RerankRequest(Schema):
    """A query and texts, to be put in the order in which they answer it."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field("auto", description="Model id, or `auto` for the default.")
    query: str = Field(min_length=1)
    documents: list[str | RerankDocument] = Field(min_length=1, max_length=MAX_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


class RerankResult(Wire):
    """One text and how well it answers the query; higher is better."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankResponse(Whole):
    """Texts, the best first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: CompletionUsage
    note: str | None = Field(None, description="How it was ranked, where no reranker is here.")


@operation("POST", "/embeddings", permission="models:run", rate="inference", prefix=OPENAI)
async def openai_embeddings(call: Call, body: EmbeddingRequest) -> EmbeddingList:
    """Return the vectors of texts, L2-normalised, in OpenAI's format."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise refused("input", f"1 to {MAX_TEXTS:,} texts can be sent at once.")
    if not all(texts):
        raise refused("input", "an empty text has no meaning. Leave it out.")
    inference = await call.services.inference()
    found = await inference.embed(texts, model=body.model, caller=call.principal.id)
    size = int(found.vectors.shape[1])
    if body.dimensions not in (None, size):
        raise refused("dimensions", f"this model's vectors have {size} numbers, no other.")
    rows = found.vectors.astype("<f4")
    tokens = sum(found.tokens)
    return EmbeddingList(
        data=[
            EmbeddingItem(
                index=index,
                embedding=base64.b64encode(row.tobytes()).decode()
                if body.encoding_format == "base64"
                else row.tolist(),
            )
            for index, row in enumerate(rows)
        ],
        model=body.model,
        usage=CompletionUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


@operation("POST", "/rerank", permission="models:run", rate="inference", prefix=OPENAI)
async def openai_rerank(call: Call, body: RerankRequest) -> RerankResponse:
    """Put texts in the order in which they answer a query."""
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    inference = await call.services.inference()
    ranked = await inference.rerank(body.query, texts, model=body.model, caller=call.principal.id)
    order = sorted(range(len(texts)), key=lambda at: -ranked.scores[at])
    return RerankResponse(
        id=new_id("rerank-"),
        model=ranked.model,
        results=[
            RerankResult(
                index=at,
                relevance_score=ranked.scores[at],
                document=RerankDocument(text=texts[at]) if body.return_documents else None,
            )
            for at in order[: body.top_n]
        ],
        usage=CompletionUsage(prompt_tokens=ranked.tokens, total_tokens=ranked.tokens),
        note=ranked.note,
    )
