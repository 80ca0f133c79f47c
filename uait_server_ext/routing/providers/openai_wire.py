"""The OpenAI chat protocol, as text: our requests in its words, its stream in our events.

No connection is made here. `Answer` is strict on purpose: what is not understood, or ends before
it said that it ends, is an error and never a shorter answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from uait_server_ext.errors import InvalidInput, StreamCut, UaitError, UpstreamFailed
from uait_server_ext.inference.models import (
    ChatRequest,
    JsonObject,
    JsonSchema,
    Message,
    NamedTool,
    Regex,
    TextDelta,
    TokenLogprob,
    ToolCall,
    TopLogprob,
    Usage,
)

FinishReason = Literal["stop", "length", "tool_calls"]
FINISHED: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
CHARACTERS_A_TOKEN = 4
DONE = "[DONE]"


def body_of(request: ChatRequest, model: str, max_tokens_name: str = "max_tokens") -> bytes:
    """Return the JSON body of a streamed chat completion.

    Raises:
        InvalidInput: the protocol has no words for what is asked.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [message_of(message) for message in request.messages],
        max_tokens_name: request.max_tokens,
        "temperature": request.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional: dict[str, tuple[Any, Any]] = {
        "top_p": (request.top_p, 1.0),
        "top_k": (request.top_k, 0),
        "min_p": (request.min_p, 0.0),
        "presence_penalty": (request.presence_penalty, 0.0),
        "frequency_penalty": (request.frequency_penalty, 0.0),
        "seed": (request.seed, None),
        "stop": (request.stop, []),
    }
    body |= {name: value for name, (value, default) in optional.items() if value != default}
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.tools:
        body["tools"] = [{"type": "function", "function": t.model_dump()} for t in request.tools]
        choice = request.tool_choice
        body["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}}
            if isinstance(choice, NamedTool)
            else choice
        )
    wanted = request.response_format
    if isinstance(wanted, JsonObject):
        body["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, JsonSchema):
        schema = {"name": "answer", "schema": wanted.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(wanted, Regex):
        raise InvalidInput(
            "The OpenAI protocol has no answers by regular expression. Choose a local model."
        )
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def message_of(message: Message) -> dict[str, Any]:
    """Return one message in the protocol's words."""
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in message.images]
        said["content"] = [{"type": "text", "text": message.content}, *pictures]
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
        said["content"] = message.content or None
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


@dataclass
class Answer:
    """An answer as its events come in; `who` is for error messages."""

    who: str
    request: ChatRequest
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs_seen: bool = False

    def take_all(self, arrived: Iterable[str]) -> tuple[list[TextDelta], UaitError | None]:
        """Read the data of events; return their text, and what is wrong with the one after it."""
        deltas: list[TextDelta] = []
        try:
            for data in arrived:
                if data != DONE:
                    deltas += self.take(data)
        except UaitError as error:
            return deltas, error
        return deltas, None

    def take(self, data: str) -> Iterator[TextDelta]:
        """Read the data of one event, and yield what text it has.

        Raises:
            UpstreamFailed: it is not what the protocol says.
            InvalidInput: the provider withheld the answer.
        """
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                message = error.get("message") if isinstance(error, dict) else error
                raise StreamCut(f"{self.who} broke off with an error: {plain(message)}")
            if usage := chunk.get("usage"):
                self.usage = usage_of(usage)
            for choice in chunk.get("choices") or ():
                if choice.get("index", 0) == 0:
                    yield from self._choice(choice)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):
            raise UpstreamFailed(
                f"{self.who} answered what is not the OpenAI protocol. Try again; if it stays, "
                "its address or version is wrong."
            ) from None

    def _choice(self, choice: dict[str, Any]) -> Iterator[TextDelta]:
        delta = choice.get("delta") or {}
        text = delta.get("content")
        if text:
            if not isinstance(text, str):
                raise TypeError
            self.text.append(text)
            kept = choice.get("logprobs")
            logprobs = logprobs_of(kept) if kept and self.request.logprobs is not None else None
            self.logprobs_seen = self.logprobs_seen or logprobs is not None
            yield TextDelta(text=text, logprobs=logprobs)
        for part in delta.get("tool_calls") or ():
            call = self.calls.setdefault(int(part["index"]), {"id": "", "name": "", "with": ""})
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] = function.get("name") or call["name"]
            call["with"] += function.get("arguments") or ""
        if reason := choice.get("finish_reason"):
            if reason not in FINISHED:
                raise InvalidInput(
                    f"{self.who} withheld its answer ({plain(reason)}). Ask otherwise, or another "
                    "model."
                )
            self.finish_reason = FINISHED[reason]

    def tool_calls(self) -> list[ToolCall]:
        """Return the calls that the model wants made.

        Raises:
            UpstreamFailed: one has arguments that are no JSON object.
        """
        found = []
        for number, call in sorted(self.calls.items()):
            arguments = call["with"] or "{}"
            if not isinstance(parsed(arguments), dict):
                raise UpstreamFailed(
                    f"{self.who} wants to call a tool with arguments that are no JSON. Ask again."
                )
            id = call["id"] or f"call_{number}"
            found.append(ToolCall(id=id[:100], name=call["name"][:100], arguments=arguments))
        return found

    def check(self) -> None:
        """Refuse an answer that is not whole, or not what was asked for.

        Raises:
            StreamCut: it ended before it said so.
            UpstreamFailed: what was asked for was ignored.
        """
        if self.finish_reason is None:
            raise StreamCut(f"{self.who} broke off in the middle of its answer. Ask again.")
        wanted = self.request.response_format
        if (
            isinstance(wanted, (JsonObject, JsonSchema))
            and self.finish_reason == "stop"
            and not self.calls
            and parsed("".join(self.text)) is None
        ):
            raise UpstreamFailed(
                f"{self.who} was asked for JSON and answered something else. Ask again, or take "
                "`json_schema` from its `capabilities`."
            )
        if self.request.logprobs is not None and self.text and not self.logprobs_seen:
            raise UpstreamFailed(
                f"{self.who} was asked for logprobs and gave none. Take `logprobs` from its "
                "`capabilities`."
            )

    def counted(self) -> Usage:
        """Return the tokens: as the provider counted them, else by the length of the text."""
        if self.usage is not None:
            return self.usage
        prompt = sum(len(message.content) for message in self.request.messages)
        return Usage(
            prompt_tokens=math.ceil(prompt / CHARACTERS_A_TOKEN),
            completion_tokens=math.ceil(len("".join(self.text)) / CHARACTERS_A_TOKEN),
        )


def joined(deltas: list[TextDelta]) -> TextDelta:
    """Return pieces that came together as one: each costs its way through the whole server."""
    if len(deltas) == 1:
        return deltas[0]
    logprobs = [token for delta in deltas for token in delta.logprobs or ()]
    return TextDelta(text="".join(delta.text for delta in deltas), logprobs=logprobs or None)


def usage_of(usage: dict[str, Any]) -> Usage:
    """Read the protocol's count of tokens."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_tokens=int(cached),
    )


def logprobs_of(kept: dict[str, Any]) -> list[TokenLogprob]:
    """Read the protocol's logprobs of one piece."""
    return [
        TokenLogprob(
            token=token["token"],
            logprob=token["logprob"],
            top=[
                TopLogprob(token=other["token"], logprob=other["logprob"])
                for other in token.get("top_logprobs") or ()
            ],
        )
        for token in kept.get("content") or ()
    ]


def parsed(text: str) -> Any:
    """Return the JSON value of a text, none where it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def plain(text: object, limit: int = 200) -> str:
    """Return what another server said, fit to be shown: one line, bounded, printable."""
    line = " ".join(str(text).split())
    return "".join(c for c in line if c.isprintable())[:limit]
