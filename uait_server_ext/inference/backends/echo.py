"""A backend without a model: it repeats the last message word by word, always the same way.

It serves eight streams at once, each with its own pace.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from uait_server_ext.errors import InvalidInput
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry

from .base import (
    STEP_SECONDS,
    Ended,
    Event,
    FinishReason,
    Generation,
    Loaded,
    Outcome,
    Piece,
    check_context,
)

STREAMS = 8


@dataclass
class _Stream:
    words: list[str]
    prompt: int
    most: int
    next_at: float
    said: int = 0
    cancelled: bool = False

    def outcome(self) -> Outcome:
        reason: FinishReason = "stop" if len(self.words) <= self.most else "length"
        return Outcome("cancelled" if self.cancelled else reason, self.prompt, self.said)

    @property
    def over(self) -> bool:
        return self.cancelled or self.said >= min(len(self.words), self.most)


class EchoChat:
    """Repeats; one word with the space before it counts as one token."""

    def __init__(self, entry: CatalogueEntry, cache: ModelCache, threads: int) -> None:
        self.loaded = Loaded(entry.context_tokens, streams=STREAMS)
        self._entry = entry
        self._streams: dict[int, _Stream] = {}

    @property
    def busy(self) -> bool:
        """Whether some request has not ended yet."""
        return bool(self._streams)

    def start(self, number: int, request: Generation) -> None:
        """Queue the words of the last user message, or of the prompt, up to ``max_tokens``."""
        if request.prompt is not None:
            texts, said = [request.prompt], request.prompt
        else:
            texts = [message["content"] for message in request.messages]
            said = next((m["content"] for m in request.messages[::-1] if m["role"] == "user"), "")
        prompt = sum(len(_words(text)) for text in texts)
        check_context(self._entry, self._entry.context_tokens, prompt, request.max_tokens)
        _refuse(request)
        first = time.monotonic() + self._entry.delay_seconds
        self._streams[number] = _Stream(_words(said), prompt, request.max_tokens, first)

    def cancel(self, number: int) -> None:
        """Let go of a request."""
        if number in self._streams:
            self._streams[number].cancelled = True

    def step(self) -> list[Event]:
        """Wait for the next word of any stream and return the words that are due."""
        due = min(0.0 if s.over else s.next_at for s in self._streams.values())
        time.sleep(max(0.0, min(due - time.monotonic(), STEP_SECONDS)))
        now = time.monotonic()
        events: list[Event] = []
        for number, stream in list(self._streams.items()):
            if not stream.over and stream.next_at <= now:
                events.append(Piece(number, stream.words[stream.said]))
                stream.said += 1
                stream.next_at = now + self._entry.delay_seconds
            if stream.over:
                events.append(Ended(number, self._streams.pop(number).outcome()))
        return events


def _refuse(request: Generation) -> None:
    """Raise ``InvalidInput`` for what an echo cannot do."""
    wants = {
        "logprobs": request.logprobs is not None,
        "tools": bool(request.tools),
        "a response format": request.grammar is not None,
        "adapters": request.adapter is not None,
        "images": any(message.get("images") for message in request.messages),
    }
    for what, wanted in wants.items():
        if wanted:
            raise InvalidInput(f"The echo backend has no {what}. Choose another model.")


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*\Z|\s*\S+", text)
