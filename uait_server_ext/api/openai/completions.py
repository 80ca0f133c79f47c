"""`POST /completions` of OpenAI's wire format: go on with a text as it stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.inference.models import ChatDone, CompletionRequest, TextDelta, TokenLogprob

from .chat import StreamOptions
from .errors import OPENAI
from .merge import merged, repetitions, validated
from .messages import check_neutral, refused
from .wire import CompletionUsage, Harmless, Stops, Whole, Wire, new_id, now, stops_of

DEFAULT_TOKENS = 16  # OpenAI's


class TextCompletionRequest(Harmless):
    """A request to go on with one text, or with each of several."""

    model_config = ConfigDict(extra="forbid")
    model: str
    prompt: str | list[str] = Field(description="Text; token ids are not taken.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=32_768)
    temperature: float | None = Field(None, ge=0.0, le=2.0, description="Default: 0.")
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=0, le=1000)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    n: int | None = Field(None, ge=1, le=8)
    seed: int | None = Field(None, ge=0)
    stop: Stops = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logit_bias: dict[str, float] | None = None


class TextLogprobs(Wire):
    """The logprobs of an answer's tokens, one list a column."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Wire):
    """One of the answers, or what is new in it."""

    nulls: ClassVar[frozenset[str]] = frozenset({"finish_reason", "logprobs"})
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class TextCompletionChunk(Wire):
    """One event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage | None = None


class TextCompletion(Whole):
    """All answers to a request."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage


@operation("POST", "/completions", permission="models:run", rate="inference", prefix=OPENAI)
async def openai_completion(
    call: Call, body: TextCompletionRequest
) -> AsyncIterator[TextCompletionChunk | TextCompletion]:
    """Go on with a text in OpenAI's format; with `stream`, as it is written.

    It is read as it stands, without a chat template, by a model of this machine.
    """
    requests = completion_requests(body)
    inference = await call.services.inference()
    streams = [inference.complete(one, caller=call.principal.id) for one in requests]
    head: dict[str, Any] = {"id": new_id("cmpl-"), "created": now(), "model": body.model}
    heard: list[list[TokenLogprob]] = [[] for _ in streams]
    done: dict[int, ChatDone] = {}
    written = [0] * len(streams)
    async with aclosing(merged(streams)) as events:
        async for index, event in events:
            if isinstance(event, TextDelta):
                new = event.logprobs or []
                heard[index] += new
                choice = TextChoice(
                    index=index,
                    text=event.text,
                    logprobs=text_logprobs(new, written[index]) if event.logprobs else None,
                )
                written[index] += sum(len(token.token) for token in new)
            else:
                done[index] = event
                choice = TextChoice(index=index, text="", finish_reason=reason_of(event))
            yield TextCompletionChunk(**head, choices=[choice])
    usage = usage_of(done, body)
    if body.stream_options and body.stream_options.include_usage:
        yield TextCompletionChunk(**head, choices=[], usage=usage)
    head["model"] = done[0].model
    yield TextCompletion(
        **head,
        choices=[
            TextChoice(
                index=index,
                text=answer.text,
                logprobs=text_logprobs(heard[index], 0) if body.logprobs is not None else None,
                finish_reason=reason_of(answer),
            )
            for index, answer in sorted(done.items())
        ],
        usage=usage,
    )


def completion_requests(body: TextCompletionRequest) -> list[CompletionRequest]:
    """Return the requests as models here take them: `n` for each prompt, in the order of these.

    Raises:
        InvalidInput: it asks for what would change the answer and is not to be had.
    """
    check_neutral(
        {
            "best_of": (body.best_of, (1, body.n)),
            "echo": (body.echo, (False,)),
            "suffix": (body.suffix, ("",)),
            "logit_bias": (body.logit_bias, ({},)),
        }
    )
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not 1 <= len(prompts) * (body.n or 1) <= 64:
        raise refused("prompt", "1 to 64 answers can be asked for at once.")
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
        "logprobs": body.logprobs,
    }
    fields = {
        "model": body.model,
        "max_tokens": body.max_tokens or DEFAULT_TOKENS,
        "stop": stops_of(body.stop),
        **{name: value for name, value in given.items() if value is not None},
    }
    return [
        one
        for prompt in prompts
        for one in repetitions(
            validated(CompletionRequest, {**fields, "prompt": prompt}), body.n or 1
        )
    ]


def reason_of(done: ChatDone) -> Literal["stop", "length"]:
    """Return why an answer ended; a text calls no tools."""
    return "length" if done.finish_reason == "length" else "stop"


def usage_of(done: dict[int, ChatDone], body: TextCompletionRequest) -> CompletionUsage:
    """Return the tokens of all answers, each prompt counted once."""
    repeated = body.n or 1
    prompts = sum(done[at].usage.prompt_tokens for at in range(0, len(done), repeated))
    made = sum(one.usage.completion_tokens for one in done.values())
    return CompletionUsage(
        prompt_tokens=prompts, completion_tokens=made, total_tokens=prompts + made
    )


def text_logprobs(tokens: list[TokenLogprob], offset: int) -> TextLogprobs:
    """Return logprobs in the form of completions; `offset` is where the first token stands."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{top.token: top.logprob for top in token.top} for token in tokens],
        text_offset=offsets,
    )
