"""Reading a prompt so that others are heard meanwhile.

MLX computes when asked for a result. Asking for one layer's attention cache after the other cuts a
chunk of a prompt into pieces of a few milliseconds, whatever its size: large chunks make the best
use of the machine, small ones are interrupted soon, and this way both hold.
"""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

CHUNK = {"cpu": 256, "gpu": 512}  # tokens that go through the model together


class PromptReader:
    """Reads tokens into attention caches, some layers at a time."""

    def __init__(self, model: Any, caches: list[Any], tokens: list[int], chunk: int) -> None:
        self._model = model
        self._caches = caches
        self._tokens = tokens
        self._chunk = chunk
        self._begun = 0
        self._layers: list[Any] = []
        self._together = 1  # layers between two looks at the clock

    @property
    def done(self) -> bool:
        """Whether all tokens are in the caches."""
        return not self._layers and self._begun == len(self._tokens)

    def work(self, seconds: float) -> None:
        """Go on reading for about so long, at least by one layer."""
        end = time.monotonic() + seconds
        while not self.done:
            if not self._layers:
                self._begin_chunk()
            began = time.monotonic()
            group, self._layers = self._layers[: self._together], self._layers[self._together :]
            mx.eval(group)
            now = time.monotonic()
            # a quarter of the time at once: few looks at the clock, and none far too late
            one = (now - began) / len(group)
            self._together = max(1, int(seconds / 4 / max(one, 1e-6)))
            if now + one > end:
                return

    def _begin_chunk(self) -> None:
        chunk = self._tokens[self._begun : self._begun + self._chunk]
        self._begun += len(chunk)
        self._model(mx.array(chunk)[None], cache=self._caches)
        self._layers = [cache.state for cache in self._caches]
