"""`POST /responses` of OpenAI's wire format: text and calls of functions; nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from uait_server_ext.api.callers import caller_of
from uait_server_ext.api.operation import Call, operation
from uait_server_ext.inference.models import (
    ChatDone,
    ChatRequest,
    Message,
    NamedTool,
    TextDelta,
    ToolCall,
)

from .chat import DEFAULT_TOKENS
from .errors import OPENAI
from .merge import validated
from .messages import (
    Function,
    NamedSchema,
    SchemaFormat,
    check_neutral,
    checked_image,
    format_of,
    refused,
    tool_of,
)
from .response_models import (
    ChosenTool,
    Incomplete,
    InputCall,
    InputDetails,
    InputMessage,
    InputResult,
    InputText,
    OutputCall,
    OutputMessage,
    OutputText,
    Response,
    ResponseEvent,
    ResponseRequest,
    ResponseUsage,
    SchemaText,
)
from .wire import TokenInfo, logprobs_of, new_id, now

LOGPROBS = "message.output_text.logprobs"
NOT_STORED = "no response is stored here. Leave it out, and send the conversation in `input`."


@operation("POST", "/responses", permission="models:run", rate="inference", prefix=OPENAI)
async def openai_response(
    call: Call, body: ResponseRequest
) -> AsyncIterator[ResponseEvent | Response]:
    """Answer in the format of OpenAI's Responses; with `stream`, as it is written."""
    request = response_request(body)
    router = await call.services.router()
    telling = Telling(body)
    for told in telling.begin():
        yield told
    async with aclosing(router.chat(request, caller_of(call), restart=False)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                for told in telling.text(event):
                    yield told
            elif isinstance(event, ChatDone):
                for told in telling.end(event):
                    yield told
    yield telling.response


class Telling:
    """Turns one answer into the events of a stream, and the response that they add up to."""

    def __init__(self, body: ResponseRequest) -> None:
        self.response = Response(
            id=new_id("resp_"),
            created_at=now(),
            status="in_progress",
            model=body.model,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=body.temperature,
            text=_echoed(body.text) or {"format": {"type": "text"}},
            tool_choice=_echoed(body.tool_choice) or "auto",
            tools=[_echoed(tool) for tool in body.tools or []],
            top_p=body.top_p,
            metadata=body.metadata or {},
        )
        self._single = body.parallel_tool_calls is False
        self._number = 0
        self._message: OutputMessage | None = None

    def begin(self) -> Iterator[ResponseEvent]:
        """Yield what comes before the answer."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.response.model_copy())

    def text(self, delta: TextDelta) -> Iterator[ResponseEvent]:
        """Yield the events of some more text."""
        if self._message is None:
            yield from self._open()
        logprobs = _tokens(delta)
        self._part.text += delta.text
        self._part.logprobs += logprobs
        yield self._of_text("response.output_text.delta", delta=delta.text, logprobs=logprobs)

    def end(self, done: ChatDone) -> Iterator[ResponseEvent]:
        """Yield the events of the end, and complete the response."""
        if self._message is None and not done.tool_calls:
            yield from self._open()
        whole = done.finish_reason != "length"
        if self._message is not None:
            part = self._part
            yield self._of_text("response.output_text.done", text=part.text, logprobs=part.logprobs)
            yield self._of_text("response.content_part.done", part=part)
            self._message.status = "completed" if whole else "incomplete"
            yield self._event("response.output_item.done", output_index=0, item=self._message)
        for made in done.tool_calls[: 1 if self._single else None]:
            yield from self._call(made)
        self.response.model = done.model
        self.response.status = "completed" if whole else "incomplete"
        if not whole:
            self.response.incomplete_details = Incomplete(reason="max_output_tokens")
        used = done.usage
        self.response.usage = ResponseUsage(
            input_tokens=used.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=used.cached_tokens),
            output_tokens=used.completion_tokens,
            total_tokens=used.prompt_tokens + used.completion_tokens,
        )
        yield self._event(f"response.{self.response.status}", response=self.response)

    @property
    def _part(self) -> OutputText:
        assert self._message
        return self._message.content[0]

    def _open(self) -> Iterator[ResponseEvent]:
        empty = OutputMessage(id=new_id("msg_"), status="in_progress", content=[])
        yield self._event("response.output_item.added", output_index=0, item=empty.model_copy())
        self._message = empty.model_copy(update={"content": [OutputText(text="")]})
        self.response.output.append(self._message)
        yield self._of_text("response.content_part.added", part=OutputText(text=""))

    def _call(self, made: ToolCall) -> Iterator[ResponseEvent]:
        at = len(self.response.output)
        item = OutputCall(
            id=new_id("fc_"),
            call_id=made.id,
            name=made.name,
            arguments=made.arguments,
            status="completed",
        )
        begun = item.model_copy(update={"arguments": "", "status": "in_progress"})
        self.response.output.append(item)
        yield self._event("response.output_item.added", output_index=at, item=begun)
        where = {"output_index": at, "item_id": item.id}
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", delta=made.arguments, **where)
        yield self._event(f"{kind}.done", name=made.name, arguments=made.arguments, **where)
        yield self._event("response.output_item.done", output_index=at, item=item)

    def _of_text(self, kind: str, **fields: Any) -> ResponseEvent:
        assert self._message
        return self._event(
            kind, output_index=0, content_index=0, item_id=self._message.id, **fields
        )

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        event = ResponseEvent(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return event


def response_request(body: ResponseRequest) -> ChatRequest:
    """Return the request as models here take it.

    Raises:
        InvalidInput: it asks for what would change the answer and is not to be had.
    """
    if body.store:
        raise refused("store", NOT_STORED)
    if body.previous_response_id is not None:
        raise refused("previous_response_id", NOT_STORED)
    if body.conversation is not None:
        raise refused("conversation", NOT_STORED)
    check_neutral(
        {
            "background": (body.background, (False,)),
            "truncation": (body.truncation, ("disabled",)),
            "reasoning.effort": (body.reasoning and body.reasoning.effort, ("none",)),
            "text.verbosity": (body.text and body.text.verbosity, ("medium",)),
        }
    )
    if unknown := set(body.include or []) - {LOGPROBS}:
        raise refused("include", f"{sorted(unknown)[0][:60]!r} is not to be had here.")
    wants_logprobs = LOGPROBS in (body.include or []) or body.top_logprobs is not None
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": (body.top_logprobs or 0) if wants_logprobs else None,
    }
    wanted: Any = body.text.format if body.text else None
    if isinstance(wanted, SchemaText):
        schema = NamedSchema.model_validate({"schema": wanted.schema_})
        wanted = SchemaFormat(type="json_schema", json_schema=schema)
    choice = body.tool_choice or "auto"
    return validated(
        ChatRequest,
        {
            "model": body.model,
            "messages": conversation(body),
            "max_tokens": body.max_output_tokens or DEFAULT_TOKENS,
            "response_format": format_of(wanted),
            "tools": [
                tool_of(
                    Function(
                        name=tool.name, description=tool.description, parameters=tool.parameters
                    )
                )
                for tool in body.tools or []
            ],
            "tool_choice": NamedTool(name=choice.name)
            if isinstance(choice, ChosenTool)
            else choice,
            **{name: value for name, value in given.items() if value is not None},
        },
    )


def conversation(body: ResponseRequest) -> list[Message]:
    """Return instructions and input as the messages of a chat."""
    said = [Message(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*said, Message(role="user", content=body.input)]
    for item in body.input:
        match item:
            case InputMessage():
                said.append(_message(item))
            case InputCall():
                call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)
                if said and said[-1].role == "assistant":
                    said[-1].tool_calls.append(call)
                else:
                    said.append(Message(role="assistant", tool_calls=[call]))
            case InputResult():
                said.append(Message(role="tool", content=item.output, tool_call_id=item.call_id))
    return said


def _message(item: InputMessage) -> Message:
    role = "system" if item.role == "developer" else item.role
    if isinstance(item.content, str):
        return Message(role=role, content=item.content)
    texts = [part.text for part in item.content if isinstance(part, InputText)]
    images = [
        checked_image(part.image_url) for part in item.content if not isinstance(part, InputText)
    ]
    fields = {"role": role, "content": "\n".join(texts), "images": images}
    return validated(Message, fields)


def _tokens(delta: TextDelta) -> list[TokenInfo]:
    found = logprobs_of(delta.logprobs)
    return found.content if found else []


def _echoed(given: Any) -> Any:
    if given is None or isinstance(given, str):
        return given
    return given.model_dump(mode="json", by_alias=True, exclude_none=True)
