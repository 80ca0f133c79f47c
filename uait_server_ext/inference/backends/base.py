"""What a backend is, seen from the worker that runs it.

A chat backend calls ``emit`` for every piece of text and, with an empty piece, between chunks of
the prompt; ``emit`` returns False when the answer is no longer wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from uait_server_ext.errors import ContextTooLong
from uait_server_ext.inference.catalogue import CatalogueEntry

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors

FinishReason = Literal["stop", "length", "cancelled"]
Emit = Callable[[str], bool]


@dataclass(frozen=True)
class Generation:
    """One completion to make."""

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass
class Outcome:
    """How a completion ended and what it took."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Loaded:
    """What a backend says of itself when its model is loaded."""

    context_tokens: int
    dimension: int | None = None
    note: str | None = None

    def message(self) -> dict[str, Any]:
        """Return it as part of a ``ready`` frame."""
        return {
            "context_tokens": self.context_tokens,
            "dimension": self.dimension,
            "note": self.note,
        }


class ChatBackend(Protocol):
    """A loaded chat model."""

    loaded: Loaded

    def generate(self, request: Generation, emit: Emit) -> Outcome:
        """Make one completion. Raises ``ContextTooLong`` before it has made anything."""
        ...


class EmbeddingBackend(Protocol):
    """A loaded embedding model."""

    loaded: Loaded

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return L2-normalised vectors (len(texts), dimension)."""
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
