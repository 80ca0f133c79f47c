"""How the next token of one stream is chosen: penalties, grammar, then chance.

Each stream draws from a random sequence of its own, so that a seed means the same whoever else is
served. Penalties count the tokens of the answer, as OpenAI's formula does:
``logit - count * frequency - (count > 0) * presence``.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from uait_server_ext.errors import UaitError
from uait_server_ext.inference.models import TokenLogprob, TopLogprob

from .base import Generation

if TYPE_CHECKING:
    from uait_server_ext.inference.constraint import Constraint

SEED_BITS = 63
SEEDS = 1 << 64


class Sampler:
    """Draws a token from log-probabilities (1, n), in llama.cpp's order of filters."""

    def __init__(self, request: Generation) -> None:
        seed = request.seed if request.seed is not None else secrets.randbits(SEED_BITS)
        self._key = mx.random.key(seed % SEEDS)
        self._request = request

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return one token (1,)."""
        request = self._request
        if 0 < request.top_k < logprobs.shape[-1]:
            logprobs = apply_top_k(logprobs, request.top_k)
        if request.top_p < 1.0:
            logprobs = apply_top_p(logprobs, request.top_p)
        if request.min_p > 0.0:
            logprobs = apply_min_p(logprobs, request.min_p)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(logprobs * (1.0 / request.temperature), key=key)


class Steering:
    """Changes the logits of one stream before a token is chosen; remembers them as they were.

    Called once a step with the tokens so far, of which the last has been chosen the step before
    (in the first step it is the prompt's).
    """

    def __init__(
        self, request: Generation, constraint: Constraint | None, ends: Collection[int]
    ) -> None:
        self._frequency = request.frequency_penalty
        self._presence = request.presence_penalty
        self._constraint = constraint
        self._ends = ends
        self._keep = request.logprobs is not None
        self._raw: deque[mx.array] = deque()
        self._counts: Counter[int] = Counter()
        self._begun = False
        self.failure: UaitError | None = None  # why the form can be held to no longer

    def __call__(self, tokens: Any, logits: mx.array) -> mx.array:
        """Return the logits (1, n) to choose from."""
        if self._begun:
            self._accept(int(tokens[-1].item()))
        self._begun = True
        if self._keep:
            self._raw.append(logits)
        if self._counts and (self._frequency or self._presence):
            logits = self._punished(logits)
        if self._constraint is not None:
            logits = self._allowed(self._constraint, logits)
        return logits

    def raw_logits(self) -> mx.array:
        """Return the model's own logits (1, n) for the oldest token not asked about yet."""
        return self._raw.popleft()

    def completes(self, token: int, made: int) -> bool:
        """Take the last token that there is room for; say whether it ends the form held to.

        ``made`` is the number of tokens before it. A batch may have taken the token already.
        """
        if self._constraint is None:
            return False
        if self._counts.total() <= made:
            self._accept(token)
        return self._constraint.complete and self.failure is None

    def _accept(self, token: int) -> None:
        self._counts[token] += 1
        if self._constraint is None or self.failure is not None or token in self._ends:
            return
        try:
            self._constraint.advance(token)
        except UaitError as error:  # of this stream only; the others go on
            self.failure = error

    def _punished(self, logits: mx.array) -> mx.array:
        tokens = mx.array(list(self._counts))
        penalties = [count * self._frequency + self._presence for count in self._counts.values()]
        return logits.at[:, tokens].subtract(mx.array(penalties, logits.dtype))

    def _allowed(self, constraint: Constraint, logits: mx.array) -> mx.array:
        mask = np.zeros(logits.shape[-1], np.bool_)
        try:
            if self.failure is None and not constraint.finished:
                allowed = constraint.mask()[: len(mask)]  # a model may have more rows than tokens
                mask[: len(allowed)] = allowed
        except UaitError as error:
            self.failure = error
        if not mask.any():
            mask[list(self._ends)] = True
        return mx.where(mx.array(mask)[None], logits, -mx.inf)


def needs_steering(request: Generation) -> bool:
    """Say whether the logits of a stream are looked at or changed."""
    return bool(
        request.frequency_penalty
        or request.presence_penalty
        or request.grammar is not None
        or request.logprobs is not None
    )


def token_logprob(
    token: int, logits: Any, alternatives: int, text: Callable[[int], str]
) -> TokenLogprob:
    """Return the logprob of a token, and of the likeliest ones, from logits (1, n)."""
    values = np.array(logits.astype(mx.float32), copy=False).reshape(-1).astype(np.float64)
    highest = values.max()
    values = values - highest - np.log(np.exp(values - highest).sum())
    likeliest = np.argsort(-values, kind="stable")[:alternatives]
    return TokenLogprob(
        token=text(token),
        logprob=float(values[token]),
        top=[TopLogprob(token=text(int(at)), logprob=float(values[at])) for at in likeliest],
    )
