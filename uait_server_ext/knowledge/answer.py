"""Answer a question from a collection: evidence first, then the model's phrasing of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync as in_thread

from uait_server_ext.errors import (
    BudgetExceeded,
    CircuitOpen,
    ContextTooLong,
    DependencyMissing,
    ModelUnavailable,
    StreamCut,
    WorkerDied,
)
from uait_server_ext.inference.models import ChatEvent, ChatRequest, Message, TextDelta, Usage
from uait_server_ext.knowledge.collection import Collection
from uait_server_ext.knowledge.evidence import (
    Evidence,
    Sentence,
    cite,
    sentences,
    support,
    weigh,
)
from uait_server_ext.knowledge.models import (
    Answer,
    AnswerDelta,
    AnswerDone,
    AskEvent,
    AskRequest,
    EvidenceEvent,
)
from uait_server_ext.knowledge.phrasing import STOP, judge, prompt_for
from uait_server_ext.knowledge.reading.tokens import count_tokens
from uait_server_ext.knowledge.retrieve import hits, rank

if TYPE_CHECKING:
    from uait_server_ext.inference.models import ChatModel, Embedder, Vectors

# Passages that are weighed; the model gets those of them that are strong, up to the request's k.
WEIGHED = 5
MAX_QUESTION_TOKENS = 500


@dataclass(slots=True)
class _Phrasing:
    """What the model made of the passages."""

    text: str | None = None
    note: str | None = None
    model: str | None = None
    backend: str | None = None
    usage: Usage | None = None
    first_token_seconds: float | None = None


class Answerer:
    """Answers questions; ``embedder`` finds and compares, ``chat`` only phrases."""

    def __init__(self, embedder: Embedder, chat: ChatModel) -> None:
        self._embedder = embedder
        self._chat = chat

    async def answer(
        self, collection: Collection, request: AskRequest, chat: ChatModel | None = None
    ) -> AsyncGenerator[AskEvent, None]:
        """Yield the evidence, then the model's phrasing piece by piece, then the whole answer.

        A question that the documents do not answer is declined, without a call of the model. Where
        the model cannot be used the answer is the supporting sentence alone, and says why.

        Raises:
            ContextTooLong: the question itself is too long.
            ModelNotFound: no such model; raised before anything else.
            WorkerDied: the model worker ended in the middle of the phrasing.

        """
        began = time.monotonic()
        chat = chat or self._chat
        if request.phrase:
            chat.check(request.model)
        _check_length(request.question)
        vector = (await self._embedder.embed([request.question], purpose="query"))[0]
        evidence = await in_thread(_find, collection, request, vector)
        best = (await self._support(collection, evidence, vector))[: request.k]
        citations = [cite(number, sentence) for number, sentence in enumerate(best, start=1)]
        extract = citations[0].quote if citations else None
        yield EvidenceEvent(declined=evidence.declined, extract=extract, citations=citations)

        phrasing = _Phrasing()
        if best and request.phrase:
            prompt = prompt_for(request.question, best)
            async with aclosing(_phrase(chat, request, prompt, phrasing)) as pieces:
                async for piece in pieces:
                    if phrasing.first_token_seconds is None:
                        phrasing.first_token_seconds = time.monotonic() - began
                    yield AnswerDelta(text=piece)
        yield AnswerDone(
            answer=Answer(
                question=request.question,
                collection=collection.name,
                declined=evidence.declined,
                text=_text(collection, extract, phrasing),
                extract=extract,
                phrasing=phrasing.text,
                citations=citations,
                model=phrasing.model,
                backend=phrasing.backend,
                usage=phrasing.usage or Usage(),
                seconds=time.monotonic() - began,
                first_token_seconds=phrasing.first_token_seconds,
            )
        )

    async def _support(
        self, collection: Collection, evidence: Evidence, question: Vectors
    ) -> list[Sentence]:
        """Return the best sentence of each passage that bears on the question, best first."""
        if evidence.declined:
            return []
        candidates = await in_thread(sentences, evidence, collection.text)
        vectors = await self._embedder.embed([c.in_context for c in candidates], purpose="query")
        return support(candidates, vectors, question)


async def _phrase(
    chat: ChatModel, request: AskRequest, prompt: str, phrasing: _Phrasing
) -> AsyncGenerator[str, None]:
    """Yield what the model writes, and note in ``phrasing`` how it ended."""
    wanted = ChatRequest(
        messages=[Message(role="user", content=prompt)],
        model=request.model,
        max_tokens=request.max_tokens,
        stop=list(STOP),
    )
    try:
        async with _closing(chat.chat(wanted)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    yield event.text
                else:
                    phrasing.text, phrasing.note = judge(event.text, event.finish_reason, prompt)
                    phrasing.model, phrasing.backend = event.model, event.backend
                    phrasing.usage = event.usage
    except (WorkerDied, StreamCut):
        raise
    except (ModelUnavailable, CircuitOpen, BudgetExceeded, DependencyMissing) as error:
        phrasing.note = f"No model phrased this: {error.detail}"


def _check_length(question: str) -> None:
    tokens = count_tokens(question)
    if tokens > MAX_QUESTION_TOKENS:
        raise ContextTooLong(
            f"The question has about {tokens:,} tokens, at most {MAX_QUESTION_TOKENS} are taken: "
            "add long material to the collection as a document and ask about it."
        )


def _find(collection: Collection, request: AskRequest, vector: Vectors) -> Evidence:
    ranking = rank(collection, request.question, vector, limit=max(WEIGHED, request.k))
    return weigh(request.question, hits(collection, ranking), collection.text)


@asynccontextmanager
async def _closing(events: AsyncIterator[ChatEvent]) -> AsyncIterator[AsyncIterator[ChatEvent]]:
    """Close a model's stream at the end: that cancels what it is still writing."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _text(collection: Collection, extract: str | None, phrasing: _Phrasing) -> str:
    if extract is None:
        return (
            f"The documents in `{collection.name}` hold nothing that answers this. Ask in the "
            "documents' own words, or add documents that cover it (`%kb add PATH`)."
        )
    parts = [f"{extract} [1]", phrasing.text, f"({phrasing.note})" if phrasing.note else None]
    return "\n\n".join(part for part in parts if part)
