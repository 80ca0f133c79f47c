"""A completion whose model may use UAIT: search the collections, look at what there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from uait_server_ext.api.callers import caller_of
from uait_server_ext.api.operation import Call, operation
from uait_server_ext.api.tools import Toolbox
from uait_server_ext.inference.models import (
    DEFAULT_MODEL,
    ChatRequest,
    Message,
    TextDelta,
    ToolCall,
    ToolDefinition,
)
from uait_server_ext.routing.models import Failover, RoutedDone
from uait_server_ext.schema import Schema


class ToolList(Schema):
    """The tools that you may let a model use."""

    tools: list[ToolDefinition]


class AssistRequest(Schema):
    """A conversation, and what its model may use to answer."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Message] = Field(min_length=1)
    model: str = DEFAULT_MODEL
    max_tokens: int = Field(512, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    seed: int | None = Field(None, ge=0)
    tools: list[str] | None = Field(None, description="Names of tools; none: all that you may use.")
    rounds: int = Field(4, ge=1, le=16, description="How often the model may call tools.")


class ToolCalled(Schema):
    """The model wants a call made."""

    type: Literal["tool_call"] = "tool_call"
    call: ToolCall


class ToolAnswered(Schema):
    """What came of the call, made as you."""

    type: Literal["tool_answer"] = "tool_answer"
    id: str
    name: str
    status: int = Field(description="As the operation would answer you over HTTP.")
    content: str


AssistEvent = Annotated[
    TextDelta | Failover | ToolCalled | ToolAnswered | RoutedDone, Field(discriminator="type")
]


@operation("GET", "/tools", permission="models:run", rate="read")
async def list_tools(call: Call) -> ToolList:
    """List the operations that a model may be given as tools."""
    from . import operations

    return ToolList(tools=Toolbox(call, operations()).definitions())


@operation("POST", "/assist", permission="models:run", rate="inference")
async def assist(call: Call, body: AssistRequest) -> AsyncIterator[AssistEvent]:
    """Stream a completion whose model may use UAIT's operations, each call made as you.

    Every call and its answer is an event. The last event is the answer that called no more tools,
    or none after the last round.
    """
    from . import operations

    toolbox = Toolbox(call, operations(), body.tools)
    router = await call.services.router()
    request = ChatRequest(
        messages=body.messages,
        model=body.model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        seed=body.seed,
        tools=toolbox.definitions(),
    )
    for left in range(body.rounds, -1, -1):
        choice: Literal["auto", "none"] = "auto" if left else "none"
        asked = request.model_copy(update={"tool_choice": choice})
        done: RoutedDone | None = None
        async with aclosing(router.chat(asked, caller_of(call))) as events:
            async for event in events:
                if isinstance(event, RoutedDone):
                    done = event
                else:
                    yield event
        assert done is not None
        if not done.tool_calls or not left:
            yield done
            return
        said = Message(role="assistant", content=done.text, tool_calls=done.tool_calls)
        answers = []
        for wanted in done.tool_calls:
            yield ToolCalled(call=wanted)
            status, content = await toolbox.run(wanted)
            yield ToolAnswered(id=wanted.id, name=wanted.name, status=status, content=content)
            answers.append(Message(role="tool", content=content, tool_call_id=wanted.id))
        request = request.model_copy(update={"messages": [*request.messages, said, *answers]})
