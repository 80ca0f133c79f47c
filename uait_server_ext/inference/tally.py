"""What one model has done since the server started, ready to be read as metrics."""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.2  # weight of the newest answer in the speed


@dataclass
class Tally:
    """Counters, which only grow, and the speed of late answers."""

    loads: int = 0
    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tokens_per_second: float | None = None

    def add(self, prompt: int, cached: int, completion: int, decode_seconds: float) -> None:
        """Count an answer; ``decode_seconds`` from its first token to its last."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion
        if completion > 1 and decode_seconds > 0:
            speed = (completion - 1) / decode_seconds
            known = speed if self.tokens_per_second is None else self.tokens_per_second
            self.tokens_per_second = known + SMOOTHING * (speed - known)


@dataclass(frozen=True)
class ModelStatistics:
    """How one model stands and what it has done, for metrics."""

    model: str
    backend: str
    state: str
    loaded_bytes: int
    slots: int
    under_way: int
    waiting: int
    tally: Tally
