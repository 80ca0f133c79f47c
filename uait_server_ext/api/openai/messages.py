"""Messages, tools and formats of OpenAI's chat requests, and what they are here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from uait_server_ext.errors import InvalidInput
from uait_server_ext.inference.models import (
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    PlainText,
    Regex,
    ResponseFormat,
    ToolCall,
    ToolDefinition,
)
from uait_server_ext.schema import Schema

from .merge import validated


class Given(Schema):
    """Part of a request; what it does not know is refused."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Given):
    """Text."""

    type: Literal["text"]
    text: str


class ImageAddress(Given):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Given):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = str | list[Part]


class SystemMessage(Given):
    """Instructions."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(Given):
    """What a person says."""

    role: Literal["user"]
    content: Content


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(max_length=100)]


class CalledFunction(Given):
    """The function of a call, and its arguments as JSON text."""

    name: Annotated[str, Field(max_length=100)]
    arguments: str


class Called(Given):
    """A call that the model made."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Given):
    """What the model said."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    refusal: str | None = None
    tool_calls: list[Called] | None = None


class ToolMessage(Given):
    """What a call came to."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: CallId
    name: str | None = None


AnyMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Function(Given):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Arguments always keep to the schema here.")


class FunctionTool(Given):
    """A tool that is a function."""

    type: Literal["function"]
    function: Function


class FunctionName(Given):
    """The name of a function."""

    name: str


class ChosenFunction(Given):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionName


class NamedSchema(Given):
    """A JSON schema with its name."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class SchemaFormat(Given):
    """The answer is JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class TextFormat(Given):
    """The answer is free text."""

    type: Literal["text"]


class ObjectFormat(Given):
    """The answer is some JSON object; or one of a schema, as text-generation-inference has it."""

    type: Literal["json_object"]
    value: dict[str, Any] | None = None


Format = Annotated[TextFormat | ObjectFormat | SchemaFormat | Regex, Field(discriminator="type")]


def message_of(said: SystemMessage | UserMessage | AssistantMessage | ToolMessage) -> Message:
    """Return a message as models here take it."""
    text, images = content_of(said.content)
    match said:
        case SystemMessage():
            return Message(role="system", content=text)
        case UserMessage():
            return validated(Message, {"role": "user", "content": text, "images": images})
        case ToolMessage():
            return Message(role="tool", content=text, tool_call_id=said.tool_call_id)
        case AssistantMessage():
            calls = [
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in said.tool_calls or []
            ]
            return Message(role="assistant", content=text or said.refusal or "", tool_calls=calls)


def content_of(content: str | Sequence[TextPart | ImagePart] | None) -> tuple[str, list[str]]:
    """Return the text and the images of a message.

    Raises:
        InvalidInput: an image is not in the request itself.
    """
    if content is None or isinstance(content, str):
        return content or "", []
    texts = [part.text for part in content if isinstance(part, TextPart)]
    images = [part.image_url.url for part in content if isinstance(part, ImagePart)]
    return "\n".join(texts), [checked_image(url) for url in images]


def checked_image(url: str) -> str:
    """Return the address of an image that is in the request itself."""
    if not url.startswith("data:image/"):
        raise refused("messages", "images are taken as `data:image/…;base64,…` only.")
    return url


def tool_of(function: Function) -> ToolDefinition:
    """Return a tool as models here take it."""
    return ToolDefinition(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters or {"type": "object", "properties": {}},
    )


def choice_of(
    choice: Literal["auto", "none", "required"] | ChosenFunction | None,
) -> Literal["auto", "none", "required"] | NamedTool:
    """Return which tool must be called."""
    if isinstance(choice, ChosenFunction):
        return NamedTool(name=choice.function.name)
    return choice or "auto"


def format_of(wanted: TextFormat | ObjectFormat | SchemaFormat | Regex | None) -> ResponseFormat:
    """Return the form that an answer must have."""
    match wanted:
        case ObjectFormat():
            return JsonSchema(json_schema=wanted.value) if wanted.value else JsonObject()
        case SchemaFormat():
            return JsonSchema(json_schema=wanted.json_schema.schema_)
        case Regex():
            return wanted
    return PlainText()


def refused(where: str, message: str) -> InvalidInput:
    """Build the refusal of one parameter."""
    return InvalidInput(f"{where}: {message}", errors=[{"location": where, "message": message}])


def check_neutral(neutral: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Refuse parameters that would change the answer, unless they say what is so anyway.

    Args:
        neutral: of each parameter, what was sent and what may be.
    """
    for name, (value, allowed) in neutral.items():
        if value is not None and value not in allowed:
            raise refused(
                name, "it is not supported here and would change the answer. Leave it out."
            )
