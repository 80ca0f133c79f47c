"""Generating with MLX: one stream by itself, many in one batch, or one with a draft model.

=========== =================================================================================
Single      the fastest for one stream; also for caches that cannot be batched (``kv_bits``)
Batch       ``mlx_lm``'s batch generator: streams join and leave between two steps
Speculative a draft model proposes, the model checks several tokens at once
=========== =================================================================================

All begin with caches that hold the prompt up to its last token. A stream moves from a Single to a
Batch when another one comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, speculative_generate_step
from mlx_lm.sample_utils import greedy_sampler

from uait_server_ext.inference.models import TokenLogprob
from uait_server_ext.inference.prompt import TextStream

from .base import FinishReason, Generation
from .mlx_sampling import Sampler, Steering

CLEAR_EVERY = 256  # steps between two times that freed memory is given back
KV_GROUP = 64
DRAFT_TOKENS = 3


@dataclass
class Stream:
    """One answer in the making."""

    number: int
    request: Generation
    prompt: list[int]
    text: TextStream
    steering: Steering | None
    weights: str = ""  # which adapter, if any
    made: list[int] = field(default_factory=list)
    cached: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        self.sampler: Callable[[mx.array], mx.array] = (
            Sampler(request) if request.temperature else greedy_sampler
        )


class Held(NamedTuple):
    """Attention caches and the tokens that they hold."""

    tokens: list[int]
    caches: list[Any]


class Step(NamedTuple):
    """One token of one stream and the logprobs (1, n) it was chosen from.

    With the last token come the reason and the stream's caches, for whoever asks next.
    """

    stream: Stream
    token: int
    logprobs: mx.array
    ended: FinishReason | None
    held: Held | None


class Single:
    """One stream with caches of its own."""

    def __init__(
        self, model: Any, stream: Stream, caches: list[Any], ends: set[int], kv_bits: int | None
    ) -> None:
        self.stream = stream
        self._model = model
        self._ends = ends
        self._caches = caches
        if kv_bits is not None:
            self._caches = [_quantised(cache, kv_bits) for cache in caches]
        self._fed = list(stream.prompt)
        self._next = self._forward(mx.array(stream.prompt[-1:]))

    def step(self, *, last: bool = False) -> list[Step]:
        """Return the next token, while the one after it is computed; not so with the ``last``."""
        stream = self.stream
        token, logprobs = self._next
        if not last and len(stream.made) + 1 < stream.request.max_tokens:
            self._next = self._forward(token)
            chosen = int(token.item())
            self._fed.append(chosen)
        else:
            chosen = int(token.item())
        if len(self._fed) % CLEAR_EVERY == 0:
            mx.clear_cache()
        ended = _ended(stream, chosen, self._ends)
        return [Step(stream, chosen, logprobs, ended, self.held() if ended else None)]

    def held(self) -> Held:
        """Return the caches as they are now."""
        return Held(self._fed, self._caches)

    def _forward(self, token: mx.array) -> tuple[Any, mx.array]:
        logits = self._model(token[None], cache=self._caches)[:, -1, :]
        if self.stream.steering is not None:
            logits = self.stream.steering(token, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = self.stream.sampler(logprobs)
        mx.async_eval(chosen, logprobs)  # type: ignore[no-untyped-call]
        return chosen, logprobs


class Batch:
    """Streams that take their steps together."""

    def __init__(self, model: Any, streams: int, ends: set[int]) -> None:
        self._generator: Any = BatchGenerator(
            model,
            stop_tokens=[[token] for token in ends],
            completion_batch_size=streams,
            prefill_batch_size=streams,
        )
        self._ends = ends
        self._streams: dict[int, Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: Stream, held: Held, token: int, tokens: int) -> None:
        """Let a stream join for so many tokens; its caches do not hold ``token``, the last, yet."""
        (uid,) = self._generator.insert_segments(
            [[[token]]],
            max_tokens=[tokens],
            caches=[held.caches],
            all_tokens=[list(held.tokens)],
            samplers=[stream.sampler],
            logits_processors=[[stream.steering] if stream.steering is not None else []],
        )
        self._streams[uid] = stream

    def step(self) -> list[Step]:
        """Return a token of each stream; none from those that have just joined."""
        steps = []
        for got in self._generator.next()[1]:
            stream = self._streams[got.uid]
            held = None
            ended = None
            if got.finish_reason is not None:
                ended = _ended(stream, got.token, self._ends) or got.finish_reason
                held = Held(got.all_tokens, got.prompt_cache)
                del self._streams[got.uid]
            steps.append(Step(stream, got.token, got.logprobs[None], ended, held))
        return steps

    def remove(self, number: int) -> tuple[Stream, Held] | None:
        """Take a stream out in the middle, with its caches; None where it is not here."""
        for uid, stream in self._streams.items():
            if stream.number == number:
                del self._streams[uid]
                caches, tokens = self._generator.remove([uid], return_prompt_caches=True)[uid]
                return stream, Held(tokens, caches)
        return None


class Speculative:
    """One stream with a draft model; for streams whose choice depends on nothing but logprobs."""

    def __init__(
        self, models: tuple[Any, Any], stream: Stream, caches: tuple[list[Any], list[Any]],
        ends: set[int],
    ) -> None:  # fmt: skip
        self.stream = stream
        self._ends = ends
        self._caches = caches[0]
        self._tokens: Any = speculative_generate_step(
            mx.array(stream.prompt[-1:]),
            *models,
            num_draft_tokens=DRAFT_TOKENS,
            max_tokens=stream.request.max_tokens,
            sampler=stream.sampler,
            prompt_cache=[*caches[0], *caches[1]],
        )

    def step(self) -> list[Step]:
        """Return the next token."""
        token, logprobs, _ = next(self._tokens)
        ended = _ended(self.stream, token, self._ends)
        return [Step(self.stream, token, logprobs[None], ended, self.held() if ended else None)]

    def held(self) -> Held:
        """End, and return the caches as they are then."""
        self._tokens.close()  # takes back what was only proposed
        tokens = [*self.stream.prompt, *self.stream.made]
        return Held(tokens[: self._caches[0].offset], self._caches)


def can_batch(caches: list[Any]) -> bool:
    """Say whether streams with such caches can be put together."""
    return all(hasattr(cache, "merge") for cache in caches)


def _quantised(cache: Any, bits: int) -> Any:
    if not hasattr(cache, "to_quantized"):
        return cache
    return cache.to_quantized(group_size=KV_GROUP, bits=bits)


def _ended(stream: Stream, token: int, ends: set[int]) -> FinishReason | None:
    if token in ends:
        return "stop"
    if len(stream.made) + 1 < stream.request.max_tokens:
        return None
    steering = stream.steering
    return "stop" if steering and steering.completes(token, len(stream.made)) else "length"
