"""Chat with MLX: Metal on Apple Silicon, CUDA where its wheel is, else the CPU.

Runs in the worker's main thread only. On a CPU weights are unpacked to 32 bits, the only type for
which MLX has a fast path there, and compilation is off: it gains nothing and writes shared
libraries into a predictable folder.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.gguf_convert import to_mlx
from uait_server_ext.inference.prompt import defuse

from .base import Emit, Generation, Loaded, Outcome, check_context
from .blas import load_fast_blas

FORM = "mlx-1"  # raise the number when the conversion changes
PROMPT_CHUNK = {"cpu": 64, "gpu": 512}  # tokens between two chances to cancel
UNPACKED_SHARE = 0.5  # of this machine's memory that unpacked weights may take
FLOAT32_BYTES = 4


class Cancelled(Exception):
    """The answer is no longer wanted."""


class MlxChat:
    """A model in MLX's format; keeps the last prompt's attention cache for the next one."""

    def __init__(self, entry: CatalogueEntry, cache: ModelCache, threads: int) -> None:
        note = None
        if not machine.has_accelerator():
            os.environ["MLX_DISABLE_COMPILE"] = "1"
            note = load_fast_blas(cache)
        import mlx.core as mx
        import mlx_lm

        self._device = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
        self._entry = entry
        model, tokenizer = mlx_lm.load(str(_folder(entry, cache)))[:2]
        self._model: Any = model
        self._tokenizer: Any = tokenizer
        if self._device == "cpu":
            _unpack(self._model)
        self._kept = _PrefixCache(self._model)
        self.loaded = Loaded(entry.context_tokens, note=note)

    def generate(self, request: Generation, emit: Emit) -> Outcome:
        """Make one completion. Raises ``ContextTooLong`` before it has made anything."""
        import mlx.core as mx
        from mlx_lm import stream_generate
        from mlx_lm.sample_utils import make_sampler

        prompt = self.tokens(request.messages)
        check_context(self._entry, self.loaded.context_tokens, len(prompt), request.max_tokens)
        if request.seed is not None:
            mx.random.seed(request.seed)
            self._kept.drop()  # a prompt half read before has other rounding
        outcome = Outcome("cancelled", len(prompt), 0)
        attention, rest = self._kept.begin(prompt)

        def heard(done: int, total: int) -> None:
            if not emit(""):
                raise Cancelled

        generation = stream_generate(
            self._model,
            self._tokenizer,
            rest,
            max_tokens=request.max_tokens,
            sampler=make_sampler(temp=request.temperature, top_p=request.top_p),
            prompt_cache=attention,
            prefill_step_size=PROMPT_CHUNK[self._device],
            prompt_progress_callback=heard,
        )
        made: list[int] = []
        try:
            for step in generation:
                made.append(step.token)
                outcome.completion_tokens = step.generation_tokens
                if not emit(step.text):
                    break
                if step.finish_reason is not None:
                    outcome.finish_reason = "length" if step.finish_reason == "length" else "stop"
        except Cancelled:
            pass
        except BaseException:
            self._kept.drop()
            raise
        finally:
            generation.close()
        self._kept.end([*prompt, *made])
        return outcome

    def tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of the messages, up to where the assistant begins to speak."""
        options = {"add_generation_prompt": True, "tokenize": False}
        added = self._tokenizer.added_tokens_decoder.values()
        plain = defuse(messages, [token.content for token in added if token.special])
        text = self._tokenizer.apply_chat_template(plain, **options)
        return list(self._tokenizer.encode(text, add_special_tokens=False))


class _PrefixCache:
    """The attention cache of the last prompt: what the next shares with it is not read again."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: list[Any] = []
        self._tokens: list[int] = []

    def begin(self, prompt: list[int]) -> tuple[list[Any], list[int]]:
        """Return the caches to use and the tokens that are not yet in them (at least one)."""
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        shared = _common_prefix(self._tokens, prompt[:-1])
        if self._caches:
            trim_prompt_cache(self._caches, len(self._tokens) - shared)
        else:
            self._caches = make_prompt_cache(self._model)
        return self._caches, prompt[shared:]

    def end(self, tokens: list[int]) -> None:
        """Note what the caches hold by now: the first of these tokens, as far as they were fed."""
        from mlx_lm.models.cache import can_trim_prompt_cache

        if can_trim_prompt_cache(self._caches):
            self._tokens = tokens[: self._caches[0].offset]
        else:  # some models' caches cannot go back
            self.drop()

    def drop(self) -> None:
        """Forget everything."""
        self._caches, self._tokens = [], []


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    shortest = min(len(left), len(right))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), shortest)


def _folder(entry: CatalogueEntry, cache: ModelCache) -> Path:
    if entry.hub is not None:
        return cache.source(entry)
    return cache.derived(entry, FORM, to_mlx)


def _unpack(model: Any) -> None:
    """Turn quantised weights into 32-bit ones where memory allows."""
    import mlx.core as mx

    utils: Any = importlib.import_module("mlx_lm.utils")  # its functions are not annotated

    unpacked = utils.get_total_parameters(model) * FLOAT32_BYTES
    if unpacked > machine.memory_bytes() * UNPACKED_SHARE:
        return
    model.set_dtype(mx.float32)
    utils.dequantize_model(model)
    mx.eval(model.parameters())
