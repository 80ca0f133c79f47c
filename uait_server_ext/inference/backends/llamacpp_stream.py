"""One answer of llama.cpp: what is asked of it, and what its events mean."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from uait_server_ext.errors import UaitError
from uait_server_ext.inference.models import TokenLogprob, TopLogprob

from .base import FinishReason, Generation, Outcome, Piece

if TYPE_CHECKING:
    from uait_server_ext.inference.constraint import Constraint
    from uait_server_ext.inference.prompt import ChatPrompt

SEEDS = 0xFFFFFFFF  # the last 32-bit number means: any
LARK = "%llguidance {}\n"  # before a grammar: whose it is


class LlamaStream:
    """An answer in the making."""

    def __init__(self, number: int, request: Generation, prompt: list[int]) -> None:
        self.number = number
        self.stopped = False  # nothing more is wanted
        self.exact = request.seed is not None and request.temperature > 0
        self._request = request
        self._prompt = prompt
        self._made = 0
        self._cached = 0
        self._reason: FinishReason = "stop"
        self._follower: Follower | None = None

    def hold_to(self, follower: Follower) -> None:
        """Hold the answer to a grammar."""
        self._follower = follower

    def body(self) -> dict[str, Any]:
        """Return what llama.cpp is asked for."""
        request = self._request
        body: dict[str, Any] = {
            "prompt": self._prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "repeat_last_n": len(self._prompt) + request.max_tokens,  # penalties look at all
            "seed": secrets.randbits(31) if request.seed is None else request.seed % SEEDS,
            # a prompt half read before has other rounding: a seed must repeat exactly
            "cache_prompt": not self.exact,
            "stream": True,
            "return_progress": True,
            "stream_options": {"include_usage": True},
        }
        if request.logprobs is not None:
            body["logprobs"] = max(1, request.logprobs)  # with 0 it tells none
        if self._follower is not None:
            body["grammar"] = LARK + self._follower.grammar
        return body

    def hear(self, said: dict[str, Any]) -> list[Piece]:
        """Take an event; return the text that came with it. Raises ``UaitError``."""
        if "error" in said:
            message = said["error"].get("message", said["error"])
            raise UaitError(f"llama.cpp could not answer: {message}")
        if "prompt_progress" in said:
            self._cached = said["prompt_progress"]["cache"]
            return []
        choice = said["choices"][0] if said["choices"] else {}
        if usage := said.get("usage"):
            self._made = usage["completion_tokens"]
        if (reason := choice.get("finish_reason")) is not None:
            return self._finish(reason)
        if usage:
            return []
        self._made += 1
        text = choice["text"]
        if self._follower is not None:
            text, self.stopped = self._follower.follow(text)
        logprobs = self._logprobs(choice)
        return [Piece(self.number, text, logprobs)] if text or logprobs else []

    def outcome(self, reason: FinishReason | None = None) -> Outcome:
        """Return how it ended."""
        return Outcome(reason or self._reason, len(self._prompt), self._made, self._cached)

    def _finish(self, reason: str) -> list[Piece]:
        self._reason = "length" if reason == "length" else "stop"
        if self._follower is None:
            return []
        rest = self._follower.rest()
        if self._follower.ends_with(rest):
            self._reason = "stop"
        return [Piece(self.number, rest)] if rest else []

    def _logprobs(self, choice: dict[str, Any]) -> list[TokenLogprob] | None:
        """Return the logprobs of a token.

        Of a character that takes several tokens llama.cpp tells the last one's only.
        """
        wanted = self._request.logprobs
        if wanted is None or not choice["text"]:
            return None
        return [
            TokenLogprob(
                token=token["token"],
                logprob=token["logprob"],
                top=[
                    TopLogprob(token=other["token"], logprob=other["logprob"])
                    for other in token["top_logprobs"][:wanted]
                ],
            )
            for token in (choice["logprobs"] or {}).get("content", [])
        ]


class Follower:
    """Follows an answer that llama.cpp holds to a grammar, and brings it to a valid end.

    llama.cpp knows no budget of tokens: an answer that runs out of them is cut off in the middle.
    And it ignores a grammar that it cannot read. What it says is therefore looked at: the first
    token that would lead astray is not shown, and the shortest way to a valid end takes its place.
    """

    def __init__(self, grammar: str, constraint: Constraint, prompt: ChatPrompt) -> None:
        self.grammar = grammar
        self._constraint = constraint
        self._prompt = prompt

    def follow(self, text: str) -> tuple[str, bool]:
        """Return what to show for the next text, and whether that is the end."""
        said: list[int] = []
        for token in self._prompt.encode(text):
            if self._constraint.finished or not self._constraint.mask()[token]:
                return self._prompt.decode(said) + self.rest(), True
            self._constraint.advance(token)
            said.append(token)
        return text, False

    def rest(self) -> str:
        """Return what is missing for a valid answer; nothing where no way to its end is known."""
        if self._constraint.complete:
            return ""
        return self._prompt.decode(self._constraint.ending() or [])

    def ends_with(self, rest: str) -> bool:
        """Say whether the answer is valid, once `rest` is shown."""
        return bool(rest) or self._constraint.complete
