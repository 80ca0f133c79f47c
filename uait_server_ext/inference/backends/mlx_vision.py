"""Chat about images with MLX: ``mlx_vlm``, one answer at a time.

What ``mlx_vlm`` cannot do here (tools, schemas, logprobs, adapters) is refused, never ignored.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from uait_server_ext.errors import DependencyMissing, InvalidInput
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.prompt import defuse
from uait_server_ext.inference.vision import NEEDED, open_images

from .base import Ended, Event, Failed, Generation, Loaded, Outcome, Piece, check_context
from .blas import load_fast_blas

PROMPT_CHUNK = 256  # tokens that are read together


@dataclass
class _Stream:
    number: int
    request: Generation
    inputs: dict[str, Any]
    outcome: Outcome
    cancelled: bool = False
    results: Generator[Any, None, None] | None = field(default=None)


class VisionChat:
    """A model that sees."""

    def __init__(
        self, entry: CatalogueEntry, cache: ModelCache, threads: int, **_options: object
    ) -> None:
        if missing := [name for name in NEEDED if not machine.has_module(name)]:
            raise DependencyMissing(
                f"No module {' and '.join(missing)}. Install the extra 'uait[vision]'."
            )
        note = None
        if not machine.has_accelerator():
            os.environ["MLX_DISABLE_COMPILE"] = "1"
            note = load_fast_blas(cache)
        self._vlm: Any = importlib.import_module("mlx_vlm")
        self._entry = entry
        self._model, self._processor = self._vlm.load(str(cache.source(entry)))
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        added = tokenizer.added_tokens_decoder.values()
        self._markers = [token.content for token in added if token.special]
        self._waiting: deque[_Stream] = deque()
        self.loaded = Loaded(entry.context_tokens, note=note, streams=1)

    @property
    def busy(self) -> bool:
        """Whether some request has not ended yet."""
        return bool(self._waiting)

    def start(self, number: int, request: Generation) -> None:
        """Queue one completion. Raises ``ContextTooLong`` or ``InvalidInput``."""
        _refuse(request)
        messages, urls = _with_places(defuse(request.messages, self._markers))
        prompt = self._vlm.apply_chat_template(
            self._processor, self._model.config, messages, num_images=len(urls)
        )
        utils: Any = importlib.import_module("mlx_vlm.utils")
        images = open_images(urls)
        inputs = utils.prepare_inputs(
            self._processor,
            images=images or None,
            prompts=prompt,
            image_token_index=getattr(self._model.config, "image_token_index", None),
        )
        tokens = int(inputs["input_ids"].size)
        check_context(self._entry, self._entry.context_tokens, tokens, request.max_tokens)
        outcome = Outcome("cancelled", tokens, 0)
        self._waiting.append(_Stream(number, request, {"prompt": prompt, **inputs}, outcome))

    def cancel(self, number: int) -> None:
        """Let go of a request."""
        for stream in self._waiting:
            stream.cancelled |= stream.number == number

    def step(self) -> list[Event]:
        """Make one token of the answer under way; the first takes as long as reading the prompt."""
        gone = [stream for stream in self._waiting if stream.cancelled]
        if gone:
            self._waiting = deque(s for s in self._waiting if not s.cancelled)
            for stream in gone:
                if stream.results is not None:
                    stream.results.close()
            return [Ended(stream.number, stream.outcome) for stream in gone]
        stream = self._waiting[0]
        try:
            return self._next(stream)
        except InvalidInput as error:
            self._waiting.popleft()
            return [Failed(stream.number, error)]

    def _next(self, stream: _Stream) -> list[Event]:
        if stream.results is None:
            stream.results = self._generate(stream)
        made = next(stream.results, None)
        events: list[Event] = []
        reason = "stop" if made is None else made.finish_reason
        if made is not None:
            stream.outcome.completion_tokens = made.generation_tokens
            if made.text:
                events.append(Piece(stream.number, made.text))
        if reason is not None:
            stream.outcome.finish_reason = "length" if reason == "length" else "stop"
            self._waiting.popleft()
            events.append(Ended(stream.number, stream.outcome))
        return events

    def _generate(self, stream: _Stream) -> Generator[Any, None, None]:
        request, inputs = stream.request, dict(stream.inputs)
        prompt = inputs.pop("prompt")
        inputs["mask"] = inputs.pop("attention_mask", None)
        if request.seed is not None:
            import mlx.core as mx

            mx.random.seed(request.seed)
        made: Generator[Any, None, None] = self._vlm.stream_generate(
            self._model,
            self._processor,
            prompt,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            presence_penalty=request.presence_penalty or None,
            frequency_penalty=request.frequency_penalty or None,
            skip_special_tokens=True,
            prefill_step_size=PROMPT_CHUNK,
            **inputs,
        )
        return made


def _refuse(request: Generation) -> None:
    """Raise ``InvalidInput`` for what a model that sees cannot do here."""
    wants = {
        "tools": bool(request.tools),
        "a schema or pattern for the answer": request.grammar is not None,
        "logprobs": request.logprobs is not None,
        "an adapter": request.adapter is not None,
        "completions of a bare text": request.prompt is not None,
    }
    if wanted := [name for name, given in wants.items() if given]:
        raise InvalidInput(
            f"A chat with images cannot have {' or '.join(wanted)}. Leave that out, or the images."
        )


def _with_places(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return messages that say where images stand, and the images in order."""
    told: list[dict[str, Any]] = []
    urls: list[str] = []
    for message in messages:
        images = message.get("images") or []
        content: Any = message["content"]
        if images:
            urls += images
            places = [{"type": "image"} for _ in images]
            content = [*places, {"type": "text", "text": content}]
        told.append({"role": message["role"], "content": content})
    return told, urls
