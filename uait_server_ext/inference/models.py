"""What goes into and comes out of inference: the types that doors, domains and the API share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

from pydantic import ConfigDict, Field

from uait_server_ext.schema import Schema

if TYPE_CHECKING:  # numpy costs 80 ms that a server start need not pay
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    Vectors: TypeAlias = npt.NDArray[np.float32]

DEFAULT_MODEL = "auto"

ModelKind = Literal["chat", "embedding"]
ModelState = Literal["not-pulled", "pulled", "loading", "loaded", "failed"]
EmbedPurpose = Literal["query", "ingest"]


class Message(Schema):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class Usage(Schema):
    """Tokens counted by the model's own tokenizer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatRequest(Schema):
    """A request for one completion."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Message] = Field(min_length=1)
    model: str = Field(
        DEFAULT_MODEL, description="Model id of the catalogue, or `auto` for the default."
    )
    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=0)
    stop: list[str] = Field(default_factory=list, max_length=8)


class TextDelta(Schema):
    """The next piece of the model's text."""

    type: Literal["delta"] = "delta"
    text: str


class ChatDone(Schema):
    """The last event of a completion: the whole text and what it took."""

    type: Literal["done"] = "done"
    text: str
    model: str
    backend: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    first_token_seconds: float = Field(
        description="From request to first token, queueing included."
    )
    seconds: float


ChatEvent = Annotated[TextDelta | ChatDone, Field(discriminator="type")]


class ModelInfo(Schema):
    """One model of the catalogue and how it stands on this machine."""

    id: str
    kind: ModelKind
    description: str
    source: str = Field(
        description="Where it comes from: `package:NAME==VERSION` or `hub:REPOSITORY`."
    )
    licence: str
    size_bytes: int = Field(description="Download size.")
    memory_bytes: int = Field(description="Memory that a loaded model takes.")
    context_tokens: int
    dimension: int | None = Field(None, description="Of an embedding model: numbers in a vector.")
    state: ModelState
    backend: str | None = Field(
        None, description="The backend that runs it here; null where none can."
    )
    default: bool = Field(False, description="What `auto` means here.")
    note: str | None = Field(None, description="Why it cannot run here, or why it is slow.")


class ChatModel(Protocol):
    """What a domain needs from a chat model."""

    def check(self, model: str) -> None:
        """Raise `ModelNotFound` where no chat model has that id."""
        ...

    def chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """Stream a completion; closing the iterator cancels it."""
        ...


class Embedder(Protocol):
    """What the knowledge base needs from an embedding model."""

    @property
    def id(self) -> str:
        """The model id, recorded with every collection."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in one vector."""
        ...

    async def embed(self, texts: Sequence[str], *, purpose: EmbedPurpose) -> Vectors:
        """Return L2-normalised vectors of shape (len(texts), dimension); queries go first."""
        ...


class PullProgress(Schema):
    """How far the download of one model is."""

    model: str
    stage: Literal["downloading", "verifying", "done"]
    done_bytes: int = 0
    total_bytes: int = 0


class ServiceState(NamedTuple):
    """How one part of the service stands, for the health report."""

    name: str
    state: Literal["ready", "starting", "stopped", "failed"]
    detail: str = ""
