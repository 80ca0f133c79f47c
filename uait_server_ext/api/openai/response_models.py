"""What goes into and comes out of `POST /responses`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from .chat import StreamOptions
from .messages import CallId, Given, Name, ObjectFormat, TextFormat
from .wire import Harmless, TokenInfo, Whole, Wire


class InputText(Given):
    """Text, of a person or of an earlier answer."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class InputImage(Given):
    """An image."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None


class InputMessage(Given):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[InputText | InputImage, Field(discriminator="type")]]
    id: str | None = None
    status: str | None = None


class InputCall(Given):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: CallId
    name: Annotated[str, Field(max_length=100)]
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(Given):
    """What a call came to."""

    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = None
    status: str | None = None


class ResponseTool(Given):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenTool(Given):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class SchemaText(Given):
    """The answer is JSON of a schema."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class TextSettings(Given):
    """The form of the answer's text."""

    format: (
        Annotated[TextFormat | ObjectFormat | SchemaText, Field(discriminator="type")] | None
    ) = None
    verbosity: str | None = None


class Reasoning(Given):
    """How a model reasons; none here does by itself."""

    effort: str | None = None
    summary: str | None = None


class ResponseRequest(Harmless):
    """A request for one answer; nothing of it is stored."""

    model_config = ConfigDict(extra="forbid")
    model: str
    input: str | list[InputMessage | InputCall | InputResult]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=32_768)
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="Default: 0.")
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = None
    text: TextSettings | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    reasoning: Reasoning | None = None
    truncation: str | None = None


class OutputText(Wire):
    """Text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = Field(default_factory=list)
    logprobs: list[TokenInfo] = Field(default_factory=list)


class OutputMessage(Wire):
    """What the model says."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class OutputCall(Wire):
    """A call that the model wants made."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed"]


class InputDetails(Wire):
    """Of the tokens that were read."""

    cached_tokens: int = 0


class OutputDetails(Wire):
    """Of the tokens that were written."""

    reasoning_tokens: int = 0


class ResponseUsage(Wire):
    """Tokens that an answer took."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = Field(default_factory=OutputDetails)
    total_tokens: int


class Incomplete(Wire):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class Response(Whole):
    """An answer, and what was asked."""

    nulls: ClassVar[frozenset[str]] = frozenset(
        {
            "error",
            "incomplete_details",
            "instructions",
            "max_output_tokens",
            "previous_response_id",
            "temperature",
            "top_p",
        }
    )
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputMessage | OutputCall] = Field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float | None = None
    text: dict[str, Any] = Field(default_factory=dict)
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = Field(default_factory=list)
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    metadata: dict[str, str] = Field(default_factory=dict)
    usage: ResponseUsage | None = None


class ResponseEvent(Wire):
    """One event of a stream; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int | None = None
    item_id: str | None = None
    content_index: int | None = None
    item: OutputMessage | OutputCall | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[TokenInfo] | None = None
