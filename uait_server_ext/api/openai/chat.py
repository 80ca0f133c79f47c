"""`POST /chat/completions` of OpenAI's wire format."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from uait_server_ext.api.callers import caller_of
from uait_server_ext.api.operation import Call, operation
from uait_server_ext.inference.models import ChatDone, ChatRequest, TextDelta, TokenLogprob

from .errors import OPENAI
from .merge import merged, repetitions, validated
from .messages import (
    AnyMessage,
    ChosenFunction,
    Format,
    FunctionTool,
    Given,
    check_neutral,
    choice_of,
    format_of,
    message_of,
    refused,
    tool_of,
)
from .wire import (
    CompletionUsage,
    Harmless,
    Logprobs,
    Stops,
    Whole,
    Wire,
    logprobs_of,
    new_id,
    now,
    stops_of,
)

DEFAULT_TOKENS = 512  # where the request names no limit


class StreamOptions(Given):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatCompletionRequest(Harmless):
    """A request for completions of a conversation.

    `top_k`, `min_p` and `response_format` of type `regex` are additions to OpenAI's format.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[AnyMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=32_768)
    max_completion_tokens: int | None = Field(None, ge=1, le=32_768)
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="Default: 0.")
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0, le=1000)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    n: int | None = Field(None, ge=1, le=8)
    seed: int | None = Field(None, ge=0)
    stop: Stops = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Format | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    logit_bias: dict[str, float] | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class FunctionOfCall(Wire):
    """The function of a call, and its arguments as JSON text."""

    name: str
    arguments: str


class CallMade(Wire):
    """A call that the model wants made; `index` in streams only."""

    index: int | None = None
    id: str
    type: Literal["function"] = "function"
    function: FunctionOfCall


class AnswerMessage(Wire):
    """What the model says."""

    nulls: ClassVar[frozenset[str]] = frozenset({"content", "refusal"})
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallMade] | None = None


class Choice(Wire):
    """One of the answers."""

    nulls: ClassVar[frozenset[str]] = frozenset({"logprobs"})
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Whole):
    """All answers to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str


class Delta(Wire):
    """What is new in an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallMade] | None = None


class ChunkChoice(Wire):
    """What is new in one of the answers."""

    nulls: ClassVar[frozenset[str]] = frozenset({"finish_reason"})
    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class ChatCompletionChunk(Wire):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None


@operation("POST", "/chat/completions", permission="models:run", rate="inference", prefix=OPENAI)
async def openai_chat_completion(
    call: Call, body: ChatCompletionRequest
) -> AsyncIterator[ChatCompletionChunk | ChatCompletion]:
    """Answer a conversation in OpenAI's format; with `stream`, as it is written."""
    wanted = body.n or 1
    request = chat_request(body)
    router = await call.services.router()
    caller = caller_of(call)
    streams = [router.chat(one, caller, restart=False) for one in repetitions(request, wanted)]
    head: dict[str, Any] = {"id": new_id("chatcmpl-"), "created": now(), "model": body.model}
    heard: list[list[TokenLogprob]] = [[] for _ in streams]
    done: dict[int, ChatDone] = {}
    begun: set[int] = set()
    single = body.parallel_tool_calls is False
    async with aclosing(merged(streams)) as events:
        async for index, event in events:
            if isinstance(event, TextDelta):
                heard[index] += event.logprobs or []
            elif isinstance(event, ChatDone):
                done[index] = event
            if not body.stream:
                continue  # only the whole is sent
            role: Literal["assistant"] | None = None if index in begun else "assistant"
            begun.add(index)
            if isinstance(event, TextDelta):
                delta = Delta(role=role, content=event.text)
                logprobs = logprobs_of(event.logprobs)
                choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs)
                yield ChatCompletionChunk(**head, choices=[choice])
            elif isinstance(event, ChatDone):
                calls = calls_made(event, single=single, indexed=True)
                if calls or role:
                    delta = Delta(role=role, content=None if calls else "", tool_calls=calls)
                    choice = ChunkChoice(index=index, delta=delta)
                    yield ChatCompletionChunk(**head, choices=[choice])
                last = ChunkChoice(index=index, delta=Delta(), finish_reason=event.finish_reason)
                yield ChatCompletionChunk(**head, choices=[last])
    usage = CompletionUsage.of(*(one.usage for one in done.values()))
    if body.stream_options and body.stream_options.include_usage:
        yield ChatCompletionChunk(**head, choices=[], usage=usage)
    choices = [
        Choice(
            index=index,
            message=AnswerMessage(
                content=answer.text or (None if answer.tool_calls else ""),
                tool_calls=calls_made(answer, single=single),
            ),
            logprobs=logprobs_of(heard[index]) if body.logprobs else None,
            finish_reason=answer.finish_reason,
        )
        for index, answer in sorted(done.items())
    ]
    first = done[0]
    head["model"] = first.model
    yield ChatCompletion(
        **head, choices=choices, usage=usage, system_fingerprint=f"uait-{first.backend}"
    )


def chat_request(body: ChatCompletionRequest) -> ChatRequest:
    """Return the request as models here take it.

    Raises:
        InvalidInput: it asks for what would change the answer and is not to be had.
    """
    check_neutral(
        {
            "store": (body.store, (False,)),
            "logit_bias": (body.logit_bias, ({},)),
            "modalities": (body.modalities, (["text"],)),
            "reasoning_effort": (body.reasoning_effort, ("none",)),
            "verbosity": (body.verbosity, ("medium",)),
        }
    )
    if body.max_tokens and body.max_completion_tokens:
        raise refused("max_tokens", "it is the older name of max_completion_tokens. Send one.")
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "it needs `logprobs: true`.")
    if body.stream_options and not body.stream:
        raise refused("stream_options", "it needs `stream: true`.")
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": body.seed,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
    }
    return validated(
        ChatRequest,
        {
            "model": body.model,
            "messages": [message_of(message) for message in body.messages],
            "max_tokens": body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS,
            "stop": stops_of(body.stop),
            "response_format": format_of(body.response_format),
            "tools": [tool_of(tool.function) for tool in body.tools or []],
            "tool_choice": choice_of(body.tool_choice),
            **{name: value for name, value in given.items() if value is not None},
        },
    )


def calls_made(answer: ChatDone, *, single: bool, indexed: bool = False) -> list[CallMade] | None:
    """Return the calls of an answer, none as null; `single`: the first alone was asked for."""
    calls = [
        CallMade(
            index=at if indexed else None,
            id=call.id,
            function=FunctionOfCall(name=call.name, arguments=call.arguments),
        )
        for at, call in enumerate(answer.tool_calls[: 1 if single else None])
    ]
    return calls or None
