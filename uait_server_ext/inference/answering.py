"""One answer of a local model: its request to the worker, its frames to events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from uait_server_ext.errors import InvalidInput

from .choice import Choice
from .models import (
    ChatDone,
    ChatEvent,
    ChatRequest,
    CompletionRequest,
    TextDelta,
    TokenLogprob,
    ToolCall,
    Usage,
)
from .runner import ModelRunner


async def answer(
    choice: Choice, runner: ModelRunner, request: ChatRequest | CompletionRequest, caller: str
) -> AsyncGenerator[ChatEvent, None]:
    """Stream ``TextDelta`` as text comes, ``ChatDone`` last; closing the iterator cancels."""
    began = time.monotonic()
    first: float | None = None
    text: list[str] = []
    message: dict[str, Any] = {
        "type": "chat" if isinstance(request, ChatRequest) else "complete",
        "request": request.model_dump(mode="json"),
    }
    if choice.adapter is not None:
        message["adapter"] = str(choice.adapter)
    runner.tally.requests += 1
    stream = runner.stream(message, caller=caller, deadline=request.deadline_seconds)
    try:
        async with aclosing(stream) as frames:
            async for frame in frames:
                said = frame.message
                seconds = time.monotonic() - began
                if said["type"] == "delta":
                    first = first if first is not None else seconds
                    text.append(said["text"])
                    yield TextDelta(text=said["text"], logprobs=_logprobs(said))
                elif said["type"] == "done":
                    done = _done(choice, said, "".join(text), first, seconds)
                    used = done.usage
                    runner.tally.add(
                        used.prompt_tokens,
                        used.cached_tokens,
                        used.completion_tokens,
                        seconds - done.first_token_seconds,
                    )
                    yield done
    except InvalidInput:
        raise
    except Exception:
        runner.tally.failures += 1
        raise


def _done(
    choice: Choice, said: dict[str, Any], text: str, first: float | None, seconds: float
) -> ChatDone:
    return ChatDone(
        text=text,
        model=choice.id,
        backend=choice.backend,
        finish_reason=said["finish_reason"],
        usage=Usage(
            prompt_tokens=said["prompt_tokens"],
            completion_tokens=said["completion_tokens"],
            cached_tokens=said["cached_tokens"],
        ),
        tool_calls=[ToolCall.model_validate(call) for call in said["tool_calls"]],
        first_token_seconds=first if first is not None else seconds,
        seconds=seconds,
    )


def _logprobs(said: dict[str, Any]) -> list[TokenLogprob] | None:
    if "logprobs" not in said:
        return None
    return [TokenLogprob.model_validate(token) for token in said["logprobs"]]
