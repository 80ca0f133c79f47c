"""Drive a chat backend by hand, as a worker's loop does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uait_server_ext.inference.backends.base import (
    ChatBackend,
    Ended,
    Event,
    Failed,
    Generation,
    Outcome,
    Piece,
)
from uait_server_ext.inference.models import TokenLogprob

MOST_STEPS = 20_000


@dataclass
class Said:
    """What came of one request."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    outcome: Outcome | None = None
    error: Exception | None = None

    @property
    def tokens(self) -> list[str]:
        """The texts of its tokens, where logprobs were asked for."""
        return [token.token for token in self.logprobs]

    @property
    def cached(self) -> int:
        """How many tokens of its prompt were known."""
        assert self.outcome is not None
        return self.outcome.cached_tokens

    @property
    def reason(self) -> str:
        """Why it ended."""
        assert self.outcome is not None, self.error
        return self.outcome.finish_reason


class Driver:
    """Numbers requests and gathers what comes of each."""

    def __init__(self, backend: ChatBackend) -> None:
        self.backend = backend
        self.said: dict[int, Said] = {}
        self._number = 0

    def start(self, request: Generation) -> int:
        """Queue a request; return its number."""
        self._number += 1
        self.backend.start(self._number, request)
        self.said[self._number] = Said()
        return self._number

    def run(self, *requests: Generation) -> list[Said]:
        """Ask all at once and wait for all."""
        numbers = [self.start(request) for request in requests]
        self.until(lambda: not self.backend.busy)
        return [self.said[number] for number in numbers]

    def until(self, condition: Callable[[], bool]) -> None:
        """Take steps until a condition holds."""
        for _ in range(MOST_STEPS):
            if condition():
                return
            self.step()
        raise AssertionError("it takes too many steps")

    def step(self) -> list[Event]:
        """Take one step."""
        events = self.backend.step()
        for event in events:
            said = self.said[event.number]
            assert (said.outcome, said.error) == (None, None), "something came after the end"
            match event:
                case Piece():
                    said.text += event.text
                    said.logprobs += event.logprobs or []
                case Ended():
                    said.outcome = event.outcome
                case Failed():
                    said.error = event.error
        return events


def asking(text: str, **more: Any) -> Generation:
    """Return a request with one user message."""
    return Generation(messages=[{"role": "user", "content": text}], **{"max_tokens": 10, **more})


def going_on(text: str, **more: Any) -> Generation:
    """Return a request to go on with a text."""
    return Generation(messages=[], prompt=text, **{"max_tokens": 10, **more})
