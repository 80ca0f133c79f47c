"""What runs on a loaded MLX model, step by step.

A request waits in ``Lanes``; its prompt is read, one prompt at a time, so that the next one finds
what they share; then it generates, by itself or in a batch with others. What is sampled with a seed
runs alone and reads its whole prompt: rounding depends on what is computed together, and a seed
must repeat exactly.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import make_prompt_cache

from uait_server_ext.errors import UaitError
from uait_server_ext.inference.prompt import TextStream

from .base import (
    STEP_SECONDS,
    Ended,
    Event,
    Failed,
    FinishReason,
    Generation,
    Outcome,
    Piece,
)
from .lanes import Lanes, Place
from .mlx_adapters import Adapters, fingerprint
from .mlx_cache import PrefixCache
from .mlx_prompt import CHUNK, PromptReader
from .mlx_sampling import Steering, needs_steering, token_logprob
from .mlx_streams import Batch, Held, Single, Speculative, Step, Stream, can_batch
from .prompt_files import PromptFiles

if TYPE_CHECKING:
    from uait_server_ext.inference.constraint import Constraint

SLICES = 6  # pieces of a prompt that are read for each token of the others
FILE_TOKENS = 1024  # shorter prompts are not worth a file


class _Reading:
    """A prompt that is being read."""

    def __init__(self, stream: Stream, caches: list[Any], readers: list[PromptReader]) -> None:
        self.stream = stream
        self.caches = caches
        self.readers = readers
        self.draft_caches: list[Any] | None = None

    @property
    def done(self) -> bool:
        return all(reader.done for reader in self.readers)

    def work(self) -> None:
        for reader in self.readers:
            if not reader.done:
                reader.work(STEP_SECONDS)
                return


class Engine:
    """Requests on one model."""

    def __init__(
        self,
        model: Any,
        *,
        ends: set[int],
        text: Callable[[Generation, list[int]], TextStream],
        token_text: Callable[[int], str],
        constraint: Callable[[Generation], Constraint | None],
        streams: int,
        room: int,
        prefix_bytes: int,
        files: PromptFiles | None,
        kv_bits: int | None,
        draft: Any,
    ) -> None:
        self._model = model
        self._ends = ends
        self._text = text
        self._token_text = token_text
        self._constraint = constraint
        self._files = files
        self._kv_bits = kv_bits
        self._draft = draft
        batched = kv_bits is None and can_batch(make_prompt_cache(model))
        self.streams = streams if batched else 1
        self._chunk = CHUNK["gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"]
        self._lanes: Lanes[Stream] = Lanes(self.streams, room)
        self._adapters = Adapters(model)
        self._prefixes = PrefixCache(prefix_bytes)
        self._batch = Batch(model, self.streams, ends)
        self._single: Single | Speculative | None = None
        self._reading: _Reading | None = None
        self._slices = 0
        self._to_file: list[tuple[str, Held]] = []
        self._events: list[Event] = []  # of cancels, for the next step

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(len(self._lanes) or self._events or self._to_file)

    def start(self, number: int, request: Generation, prompt: list[int]) -> None:
        """Queue a completion. Raises ``InvalidInput`` for its adapter or grammar."""
        if request.adapter is not None:
            self._adapters.check(request.adapter)
        steering = None
        if needs_steering(request):
            steering = Steering(request, self._constraint(request), self._ends)
        weights = fingerprint(request.adapter)
        text = self._text(request, prompt)
        stream = Stream(number, request, prompt, text, steering, weights)
        self._lanes.add(
            number,
            stream,
            lane=weights,
            alone=_exact(request),
            tokens=len(prompt) + request.max_tokens,
        )

    def cancel(self, number: int) -> None:
        """Let go of a request, wherever it is."""
        stream = self._lanes.withdraw(number)
        if stream is None:
            stream = self._interrupt(number)
            self._lanes.release(number)
        if stream is not None:
            self._events.append(_end(stream, "cancelled"))

    def step(self) -> list[Event]:
        """Read a piece of a prompt, or make a token of each stream."""
        events, self._events = self._events, []
        with mx.stream(generation_stream):
            if self._reading is None and not isinstance(self._single, Speculative):
                events += self._admit()
            generating = self._single is not None or len(self._batch) > 0
            if self._reading is not None and not (generating and self._slices >= SLICES):
                self._slices += 1
                self._reading.work()
                if self._reading.done:
                    events += self._begin(self._reading)
            elif generating:
                self._slices = 0
                events += self._told(self._generate())
            elif self._to_file and not len(self._lanes):
                self._save()
        return events

    def _admit(self) -> list[Event]:
        """Begin to read the next prompt, if one may begin."""
        place = self._lanes.admit()
        if place is None:
            return []
        try:
            self._adapters.attach(place.item.request.adapter)
        except UaitError as error:
            self._lanes.release(place.number)
            return [Failed(place.number, error)]
        self._reading = self._read(place)
        return []

    def _read(self, place: Place[Stream]) -> _Reading:
        """Look for what is known of a prompt, and prepare to read the rest."""
        stream, found = place.item, None
        if not place.alone:
            found = self._prefixes.find(stream.weights, stream.prompt)
            if self._files is not None and len(stream.prompt) > FILE_TOKENS:
                known = found[1] if found else 0
                found = self._files.find(stream.weights, stream.prompt, known) or found
        caches, stream.cached = found or (make_prompt_cache(self._model), 0)
        rest = stream.prompt[stream.cached : -1]
        reading = _Reading(stream, caches, [PromptReader(self._model, caches, rest, self._chunk)])
        if self._draft is not None and _may_speculate(stream) and len(self._lanes) == 1:
            reading.draft_caches = make_prompt_cache(self._draft)
            reading.readers.append(
                PromptReader(self._draft, reading.draft_caches, stream.prompt[:-1], self._chunk)
            )
        return reading

    def _begin(self, reading: _Reading) -> list[Event]:
        """Let a stream generate whose prompt has been read; keep what was read for others."""
        stream, caches = reading.stream, reading.caches
        self._reading, self._slices = None, 0
        if not _exact(stream.request):
            self._keep(stream, Held(stream.prompt[:-1], copy.deepcopy(caches)), read=True)
        if reading.draft_caches is not None:
            models = self._model, self._draft
            self._single = Speculative(models, stream, (caches, reading.draft_caches), self._ends)
            return []
        steps = self._join()
        if self._single is None and not len(self._batch):
            self._single = Single(self._model, stream, caches, self._ends, self._kv_bits)
        else:
            held = Held(stream.prompt[:-1], caches)
            self._batch.add(stream, held, stream.prompt[-1], stream.request.max_tokens)
        return self._told(steps)

    def _join(self) -> list[Step]:
        """Move the stream that runs by itself into the batch; return its last token there."""
        single, self._single = self._single, None
        if single is None:
            return []
        assert isinstance(single, Single)
        (step,) = single.step(last=True)
        if step.ended is None:
            left = single.stream.request.max_tokens - len(single.stream.made) - 1
            self._batch.add(single.stream, single.held(), step.token, left)
        return [step]

    def _generate(self) -> Iterable[Step]:
        if self._single is None:
            return self._batch.step()
        steps = self._single.step()
        if steps[0].ended is not None:
            self._single = None
        return steps

    def _told(self, steps: Iterable[Step]) -> list[Event]:
        """Turn tokens into what the worker hears; let go of streams that have ended."""
        events: list[Event] = []
        for step in steps:
            stream = step.stream
            stream.made.append(step.token)
            events.extend(self._piece(step))
            if step.ended is not None:
                self._lanes.release(stream.number)
                events.append(_end(stream, step.ended))
                if step.held is not None and not _exact(stream.request):
                    self._keep(stream, step.held)
        return events

    def _piece(self, step: Step) -> list[Event]:
        """Return the text that a token makes whole, with the logprobs of what it is made of."""
        stream, alternatives = step.stream, step.stream.request.logprobs
        end = step.token in self._ends
        if alternatives is not None:
            assert stream.steering is not None
            logits = stream.steering.raw_logits()
            if not end:
                logprob = token_logprob(step.token, logits, alternatives, self._token_text)
                stream.logprobs.append(logprob)
        text = "" if end else stream.text.push(step.token)
        if not text and not (step.ended and stream.logprobs):
            return []
        logprobs, stream.logprobs = stream.logprobs, []
        return [Piece(stream.number, text, logprobs if alternatives is not None else None)]

    def _interrupt(self, number: int) -> Stream | None:
        """Take a stream out in the middle; what is known of it by then is kept."""
        if self._reading is not None and self._reading.stream.number == number:
            stream, self._reading = self._reading.stream, None
            return stream
        if self._single is not None and self._single.stream.number == number:
            stream, held = self._single.stream, self._single.held()
            self._single = None
        elif (found := self._batch.remove(number)) is not None:
            stream, held = found
        else:
            return None
        if not _exact(stream.request):
            self._keep(stream, held)
        return stream

    def _keep(self, stream: Stream, held: Held, *, read: bool = False) -> None:
        """Keep caches for those who ask next; a long prompt that was just read also on disk."""
        if self._kv_bits is None or read:
            self._prefixes.keep(stream.weights, held.tokens, held.caches)
        new = len(held.tokens) - stream.cached
        if read and self._files is not None and new >= FILE_TOKENS:
            self._to_file = [(stream.weights, held)]  # the newest is enough

    def _save(self) -> None:
        """Write a prompt to disk; at a time when nobody waits."""
        assert self._files is not None
        key, held = self._to_file.pop()
        with contextlib.suppress(OSError, RuntimeError):  # a full disk costs a cache, no answer
            self._files.save(key, held.tokens, copy.deepcopy(held.caches))


def _exact(request: Generation) -> bool:
    """Say whether an answer must come out the same each time although it is drawn by lot."""
    return request.seed is not None and request.temperature > 0


def _may_speculate(stream: Stream) -> bool:
    return stream.steering is None and not _exact(stream.request)


def _end(stream: Stream, reason: FinishReason) -> Ended | Failed:
    if stream.steering is not None and stream.steering.failure is not None:
        return Failed(stream.number, stream.steering.failure)
    outcome = Outcome(reason, len(stream.prompt), len(stream.made), stream.cached)
    return Ended(stream.number, outcome)
