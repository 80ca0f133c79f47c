"""A backend without a model: it repeats the last message word by word, always the same way."""

from __future__ import annotations

import re
import time

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry

from .base import Emit, FinishReason, Generation, Loaded, Outcome, check_context

TICK_SECONDS = 0.01


class EchoChat:
    """Repeats; one word with the space before it counts as one token."""

    def __init__(self, entry: CatalogueEntry, cache: ModelCache, threads: int) -> None:
        self.loaded = Loaded(entry.context_tokens)
        self._entry = entry

    def generate(self, request: Generation, emit: Emit) -> Outcome:
        """Emit the words of the last user message, up to ``max_tokens``."""
        prompt = sum(len(_words(message["content"])) for message in request.messages)
        check_context(self._entry, self._entry.context_tokens, prompt, request.max_tokens)
        said = [m["content"] for m in request.messages if m["role"] == "user"]
        words = _words(said[-1]) if said else []
        for count, word in enumerate(words[: request.max_tokens], start=1):
            if not self._pause(emit) or not emit(word):
                return Outcome("cancelled", prompt, count)
        reason: FinishReason = "stop" if len(words) <= request.max_tokens else "length"
        return Outcome(reason, prompt, min(len(words), request.max_tokens))

    def _pause(self, emit: Emit) -> bool:
        end = time.monotonic() + self._entry.delay_seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, TICK_SECONDS))
            if not emit(""):
                return False
        return True


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*\Z|\s*\S+", text)
