"""One answer inside the worker: what a backend is to make, and what becomes of its pieces.

Stop strings are found and calls of tools read here, so that every backend does it the same way.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uait_server_ext.inference.backends.base import Generation, Outcome, Piece
from uait_server_ext.inference.models import (
    ChatRequest,
    CompletionRequest,
    Message,
    PlainText,
    ToolCall,
    ToolDefinition,
)
from uait_server_ext.inference.stops import StopFilter
from uait_server_ext.inference.tool_calls import CallFilter, definition, style_of

if TYPE_CHECKING:
    from uait_server_ext.inference.constraint import Grammar


class Answer:
    """What has come of one request so far; turns events into frames.

    ``template`` is the model's chat template, by which its calls of tools are known.
    """

    def __init__(
        self, number: int, request: ChatRequest | CompletionRequest, template: str | None
    ) -> None:
        self.number = number
        self._stops = StopFilter(request.stop)
        tools = tools_of(request)
        self._calls = CallFilter(tools, style_of(template)) if tools else None
        self._logprobs: list[dict[str, Any]] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended it; what comes after is not part of it."""
        return self._stops.stopped

    def piece(self, piece: Piece) -> dict[str, Any] | None:
        """Take the next piece; return a ``delta`` frame where something can be shown by now."""
        self._logprobs.extend(token.model_dump() for token in piece.logprobs or ())
        return self._delta(self._said(self._stops.push(piece.text)))

    def end(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return the last frames."""
        if outcome.finish_reason == "cancelled" and not self.stopped:
            return [{"type": "cancelled", "id": self.number}]
        text = self._said(self._stops.rest())
        calls: list[ToolCall] = []
        if self._calls is not None:
            more, calls = self._calls.finish(_new_call_id)
            text += more
        reason = "stop" if self.stopped else outcome.finish_reason
        done = {
            "type": "done",
            "id": self.number,
            "finish_reason": "tool_calls" if calls else reason,
            "tool_calls": [call.model_dump() for call in calls],
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "cached_tokens": outcome.cached_tokens,
        }
        return [frame for frame in (self._delta(text), done) if frame is not None]

    def _said(self, text: str) -> str:
        return self._calls.push(text) if self._calls is not None else text

    def _delta(self, text: str) -> dict[str, Any] | None:
        if not text and not self._logprobs:
            return None
        frame = {"type": "delta", "id": self.number, "text": text}
        if self._logprobs:
            frame["logprobs"], self._logprobs = self._logprobs, []
        return frame


def tools_of(request: ChatRequest | CompletionRequest) -> list[ToolDefinition]:
    """Return the tools that a request may call."""
    if not isinstance(request, ChatRequest) or request.tool_choice == "none":
        return []
    return request.tools


def read_request(message: dict[str, Any]) -> ChatRequest | CompletionRequest:
    """Return the request of a ``chat`` or ``complete`` frame."""
    kind = ChatRequest if message["type"] == "chat" else CompletionRequest
    return kind.model_validate(message["request"])


def generation_of(
    request: ChatRequest | CompletionRequest, template: str | None, adapter: str | None
) -> Generation:
    """Return what a backend is to make. Raises ``InvalidInput`` for what cannot be enforced."""
    chat = request if isinstance(request, ChatRequest) else None
    return Generation(
        messages=[_message(message) for message in chat.messages] if chat else [],
        prompt=request.prompt if isinstance(request, CompletionRequest) else None,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        seed=request.seed,
        logprobs=request.logprobs,
        tools=[definition(tool) for tool in tools_of(request)],
        grammar=_grammar(chat, template) if chat is not None else None,
        adapter=Path(adapter) if adapter is not None else None,
    )


def _grammar(request: ChatRequest, template: str | None) -> Grammar | None:
    calls = request.tools or request.tool_choice not in ("auto", "none")
    if isinstance(request.response_format, PlainText) and not calls:
        return None  # without llguidance, which takes a while to import
    from uait_server_ext.inference.constraint import grammar_of

    return grammar_of(request, style_of(template))


def _message(message: Message) -> dict[str, Any]:
    """Return a message as chat templates take it."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        made["images"] = message.images
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a model wrote it; a template shows it as it is
        return text


def _new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
