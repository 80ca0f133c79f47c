"""What goes into and comes out of inference: the types that doors, domains and the API share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import ConfigDict, Field

from uait_server_ext.schema import Schema

if TYPE_CHECKING:  # numpy costs 80 ms that a server start need not pay
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    Vectors: TypeAlias = npt.NDArray[np.float32]

DEFAULT_MODEL = "auto"

ModelKind = Literal["chat", "embedding", "rerank"]
ModelState = Literal["not-pulled", "pulled", "loading", "loaded", "failed"]
EmbedPurpose = Literal["query", "ingest"]


class ToolCall(Schema):
    """A call that the model wants made; `arguments` is the text of a JSON object."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=100)
    name: str = Field(max_length=100)
    arguments: str


class Message(Schema):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: list[str] = Field(
        default_factory=list, max_length=16, description="`data:` URLs, for a model that sees."
    )
    tool_calls: list[ToolCall] = Field(default_factory=list, description="Of an assistant.")
    tool_call_id: str | None = Field(None, description="Of a tool: the call that it answers.")


class Usage(Schema):
    """Tokens counted by the model's own tokenizer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = Field(0, description="Of the prompt: not read again, as they were kept.")


class ToolDefinition(Schema):
    """A tool that the model may call, with the JSON schema of its arguments."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})


class NamedTool(Schema):
    """The one tool that the model must call."""

    model_config = ConfigDict(extra="forbid")
    name: str


class PlainText(Schema):
    """The answer is free text."""

    type: Literal["text"] = "text"


class JsonObject(Schema):
    """The answer is some JSON object."""

    type: Literal["json_object"] = "json_object"


class JsonSchema(Schema):
    """The answer is JSON that a schema accepts."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] = Field(description="JSON Schema, draft 2020-12.")


class Regex(Schema):
    """The answer as a whole matches a regular expression."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["regex"] = "regex"
    pattern: str = Field(max_length=2000)


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema | Regex, Field(discriminator="type")]


class TopLogprob(Schema):
    """A token that might have come, and the natural logarithm of its probability."""

    token: str
    logprob: float


class TokenLogprob(Schema):
    """A token that came, with those that might have come instead."""

    token: str
    logprob: float
    top: list[TopLogprob] = Field(default_factory=list)


class Sampling(Schema):
    """How to make a completion, whatever it completes."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(
        DEFAULT_MODEL,
        description="Model id of the catalogue, or `auto` for the default; `id+adapter` adds a "
        "LoRA adapter, `id@backend` forces a backend.",
    )
    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, le=1000, description="0: no limit.")
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    seed: int | None = Field(None, ge=0)
    stop: list[str] = Field(default_factory=list, max_length=8)
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Tell the tokens' logprobs, each with so many alternatives."
    )
    deadline_seconds: float | None = Field(
        None, gt=0, le=3600, description="End with an error where the answer takes longer."
    )


class ChatRequest(Sampling):
    """A request for one completion of a conversation."""

    messages: list[Message] = Field(min_length=1)
    response_format: ResponseFormat = Field(default_factory=PlainText)
    tools: list[ToolDefinition] = Field(default_factory=list, max_length=64)
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"


class CompletionRequest(Sampling):
    """A request to go on with a text as it stands, without a chat template."""

    prompt: str = Field(min_length=1)


class TextDelta(Schema):
    """The next piece of the model's text."""

    type: Literal["delta"] = "delta"
    text: str
    logprobs: list[TokenLogprob] | None = None


class ChatDone(Schema):
    """The last event of a completion: the whole text and what it took."""

    type: Literal["done"] = "done"
    text: str
    model: str
    backend: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    tool_calls: list[ToolCall] = Field(default_factory=list)
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
        description="Where it comes from: `package:NAME==VERSION`, `hub:REPOSITORY`, `folder:PATH` "
        "or `file:PATH`."
    )
    digest: str | None = Field(None, description="SHA-256 over its files, where it is known.")
    capabilities: list[str] = Field(
        default_factory=list,
        description="Of `chat`, `completion`, `tools`, `vision`, `embedding`, `rerank`.",
    )
    adapters: list[str] = Field(
        default_factory=list, description="LoRA adapters of it; `id+adapter` uses one."
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
    loaded_bytes: int = Field(0, description="Memory that it holds now.")
    under_way: int = Field(0, description="Requests that it serves now.")
    waiting: int = Field(0, description="Requests in its queue.")
    tokens_per_second: float | None = Field(None, description="Of one answer, lately.")


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
    """How far the download or import of one model is."""

    type: Literal["progress"] = "progress"
    model: str
    stage: Literal["downloading", "copying", "verifying", "done"]
    done_bytes: int = 0
    total_bytes: int = 0


class ServiceState(NamedTuple):
    """How one part of the service stands, for the health report."""

    name: str
    state: Literal["ready", "starting", "stopped", "failed"]
    detail: str = ""
