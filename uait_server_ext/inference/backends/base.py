"""What a backend is, seen from the worker that runs it.

A chat backend is pulled: the worker's one loop calls ``start`` and ``cancel`` between two steps and
``step`` as long as the backend is ``busy``, so that one main thread serves many streams::

    start(1) start(2)  step -> [Piece 1]  step -> [Piece 1, Piece 2]  cancel(1)
    step -> [Ended 1 cancelled, Piece 2]  step -> [Ended 2 stop]      busy == False

Each request that was started ends with exactly one ``Ended`` or ``Failed``, cancelled ones too.
What a backend cannot honour (a seed, logprobs, tools, images, a grammar, an adapter) it refuses in
``start`` with ``InvalidInput``; it never ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from uait_server_ext.errors import ContextTooLong
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.models import TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from uait_server_ext.inference.constraint import Grammar
    from uait_server_ext.inference.models import Vectors

FinishReason = Literal["stop", "length", "cancelled"]
STEP_SECONDS = 0.05  # a step takes no longer, so that a cancel is heard within 0.1 s


@dataclass(frozen=True)
class Generation:
    """One completion to make.

    ``messages`` are in the form that chat templates take: role, content (text), and where there are
    any ``images`` (`data:` URLs), ``tool_calls`` (``{"id", "type": "function", "function": {"name",
    "arguments"}}`` with arguments as an object), ``tool_call_id``. ``tools`` are ``{"type":
    "function", "function": {...}}``. With a ``prompt`` there are no messages: it is read as it is.
    """

    messages: list[dict[str, Any]]
    max_tokens: int
    prompt: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    grammar: Grammar | None = None
    adapter: Path | None = None


@dataclass
class Outcome:
    """How a completion ended and what it took; ``cached_tokens`` of the prompt were not read."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """The next text of one stream; with logprobs, those of the tokens that it is made of."""

    number: int
    text: str
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True)
class Ended:
    """One stream has ended; nothing more comes from it."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """One stream cannot go on, the others can."""

    number: int
    error: Exception


Event: TypeAlias = Piece | Ended | Failed


@dataclass(frozen=True)
class Loaded:
    """What a backend says of itself when its model is loaded.

    It serves ``streams`` requests at once. ``template`` is the text of the chat template, by which
    the worker knows how the model writes its calls of tools; None: it was taught none.
    """

    context_tokens: int
    dimension: int | None = None
    note: str | None = None
    streams: int = 1
    template: str | None = None

    def message(self) -> dict[str, Any]:
        """Return it as part of a ``ready`` frame."""
        return {
            "context_tokens": self.context_tokens,
            "dimension": self.dimension,
            "note": self.note,
            "streams": self.streams,
        }


class ChatBackend(Protocol):
    """A loaded chat model; made with ``(entry, cache, threads)`` and used by one thread only.

    With a ``draft=`` entry it is given a smaller model that guesses ahead. An exception out of
    ``step`` means that the model is in no known state: the worker fails all its requests and ends.
    """

    loaded: Loaded

    @property
    def busy(self) -> bool:
        """Whether some request has not ended yet, so that ``step`` must be called."""
        ...

    def start(self, number: int, request: Generation) -> None:
        """Queue one completion.

        Raises ``ContextTooLong`` or ``InvalidInput`` before it has made anything; the request then
        does not exist and no event comes from it.
        """
        ...

    def cancel(self, number: int) -> None:
        """Let go of a request: the next ``step`` returns ``Ended`` for it, as ``cancelled``.

        A number that has ended already, or never was, is no error.
        """
        ...

    def step(self) -> list[Event]:
        """Work for at most about ``STEP_SECONDS`` and return what came, in order.

        That is a chunk of a prompt, or a token for each stream. A backend that computes in threads
        of its own waits that long for its next event. The list may be empty.
        """
        ...


class Embedded(NamedTuple):
    """L2-normalised vectors (texts, dimension) and the tokens of each text."""

    vectors: Vectors
    tokens: list[int]


class Ranked(NamedTuple):
    """A score of each text (higher: nearer to the query), and the tokens that were read for it."""

    scores: npt.NDArray[np.float32]
    tokens: list[int]


class EmbeddingBackend(Protocol):
    """A loaded embedding model."""

    loaded: Loaded

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Return L2-normalised vectors (len(texts), dimension)."""
        ...


class RerankBackend(Protocol):
    """A loaded model that reads a query and a text together."""

    loaded: Loaded

    def rank(self, query: str, texts: Sequence[str]) -> Ranked:
        """Return a score of each text, in the order of the texts."""
        ...


def check_context(entry: CatalogueEntry, context: int, prompt: int, max_tokens: int) -> None:
    """Raise ``ContextTooLong`` when prompt and answer together do not fit, with both numbers."""
    if prompt + max_tokens > context:
        raise ContextTooLong(
            f"The prompt has {prompt:,} tokens and the answer may take {max_tokens:,}: together "
            f"more than the {context:,} tokens that {entry.id} holds. Shorten the prompt or lower "
            "max_tokens.",
            prompt_tokens=prompt,
            max_tokens=max_tokens,
            context_tokens=context,
        )
