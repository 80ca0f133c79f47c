"""Chat with MLX: Metal on Apple Silicon, CUDA where its wheel is, else the CPU.

Runs in the worker's main thread only. On a CPU weights are unpacked to 32 bits, the only type for
which MLX has a fast path there, and compilation is off: it gains nothing and writes shared
libraries into a predictable folder. This module loads; ``mlx_engine`` runs what is loaded.
"""

from __future__ import annotations

import importlib
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uait_server_ext.errors import InvalidInput, ModelUnavailable
from uait_server_ext.inference import machine
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.gguf_convert import to_mlx
from uait_server_ext.inference.prompt import TextStream, defuse, explain_tools, knows_tools

from .base import Event, Generation, Loaded, check_context
from .blas import load_fast_blas

if TYPE_CHECKING:
    from uait_server_ext.inference.constraint import Constraint, Vocabulary

FORM = "mlx-1"  # raise the number when the conversion changes
STREAMS = 8
ROOM_TOKENS = 16_384  # that all streams together may take, where one context is smaller
UNPACKED_SHARE = 0.5  # of this machine's memory that unpacked weights may take
PREFIX_SHARE, PREFIX_BYTES = 1 / 16, 2 << 30  # of memory, and at most, for prompts kept in it
PROMPTS, PROMPT_FILE_BYTES = "prompts", 2 << 30  # a folder of the model's, and its bound
FLOAT32_BYTES = 4


class MlxChat:
    """A model in MLX's format."""

    def __init__(
        self,
        entry: CatalogueEntry,
        cache: ModelCache,
        threads: int,
        *,
        draft: CatalogueEntry | None = None,
        streams: int = STREAMS,
        prefix_bytes: int | None = None,
        prompt_bytes: int = PROMPT_FILE_BYTES,
    ) -> None:
        """Load the model.

        Args:
            draft: a small model with the same vocabulary, which guesses ahead.
            streams: answers made at once; with quantised attention caches it is one.
            prefix_bytes: memory for prompts that were read; a share of the machine's by default.
            prompt_bytes: disk for long prompts that were read; 0 for none.
        """
        note = None
        if not machine.has_accelerator():
            os.environ["MLX_DISABLE_COMPILE"] = "1"
            note = load_fast_blas(cache)
        from .mlx_engine import Engine
        from .prompt_files import PromptFiles

        folder = _folder(entry, cache)
        self._entry = entry
        self._model, self._tokenizer = _load(folder)
        if prefix_bytes is None:
            prefix_bytes = min(PREFIX_BYTES, int(machine.memory_bytes() * PREFIX_SHARE))
        files = None
        if prompt_bytes:
            files = PromptFiles(cache.root / entry.id / PROMPTS, prompt_bytes, _identity(folder))
        self._engine = Engine(
            self._model,
            ends=set(self._tokenizer.eos_token_ids),
            text=self._text_stream,
            token_text=lambda token: str(self._fast_tokenizer.decode([token], False)),
            constraint=self._constraint,
            streams=streams,
            room=max(entry.context_tokens, ROOM_TOKENS),
            prefix_bytes=prefix_bytes,
            files=files,
            kv_bits=entry.kv_bits,
            draft=self._load_draft(draft, cache) if draft is not None else None,
        )
        self.loaded = Loaded(
            entry.context_tokens,
            note=note,
            streams=self._engine.streams,
            template=self._template,
        )

    @property
    def busy(self) -> bool:
        """Whether some request has not ended yet."""
        return self._engine.busy

    def start(self, number: int, request: Generation) -> None:
        """Queue one completion. Raises ``ContextTooLong`` or ``InvalidInput``."""
        if any(message.get("images") for message in request.messages):
            raise InvalidInput(f"{self._entry.id} reads no images. Choose a model that sees.")
        prompt = self.tokens(request)
        check_context(self._entry, self.loaded.context_tokens, len(prompt), request.max_tokens)
        self._engine.start(number, request, prompt)

    def cancel(self, number: int) -> None:
        """Let go of a request."""
        self._engine.cancel(number)

    def step(self) -> list[Event]:
        """Read a piece of a prompt, or make a token of each stream."""
        return self._engine.step()

    def tokens(self, request: Generation) -> list[int]:
        """Return the token ids that the model is to go on from."""
        if request.prompt is not None:
            return list(self._tokenizer.encode(request.prompt))
        added = self._tokenizer.added_tokens_decoder.values()
        markers = [token.content for token in added if token.special]
        messages, tools = defuse(request.messages, markers), defuse(request.tools, markers)
        if self._template is None:
            raise InvalidInput(
                f"{self._entry.id} has no chat template: it only goes on with a text. Ask for a "
                "completion, or choose another model."
            )
        if not knows_tools(self._template):
            messages, tools = explain_tools(messages, tools), []
        options = {"add_generation_prompt": True, "tokenize": False, "tools": tools or None}
        text = self._tokenizer.apply_chat_template(messages, **options)
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _load_draft(self, draft: CatalogueEntry, cache: ModelCache) -> Any:
        model, tokenizer = _load(_folder(draft, cache))
        if tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise ModelUnavailable(
                f"{draft.id} cannot guess ahead for {self._entry.id}: their vocabularies differ. "
                "Give a draft model of the same family, or none."
            )
        return model

    @cached_property
    def _template(self) -> str | None:
        template = self._tokenizer.chat_template
        return str(template) if template else None

    @cached_property
    def _fast_tokenizer(self) -> Any:
        return self._tokenizer.backend_tokenizer

    def _text_stream(self, request: Generation, prompt: list[int]) -> TextStream:
        return TextStream(self._fast_tokenizer, prompt if request.prompt is not None else ())

    def _constraint(self, request: Generation) -> Constraint | None:
        if request.grammar is None:
            return None
        from uait_server_ext.inference.constraint import Constraint

        return Constraint(request.grammar, self._vocabulary, budget=request.max_tokens)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from uait_server_ext.inference.constraint import Vocabulary

        ends = sorted(self._tokenizer.eos_token_ids)
        return Vocabulary(self._fast_tokenizer.to_str(), size=None, ends=ends)


def _load(folder: Path) -> tuple[Any, Any]:
    """Return the model, unpacked where that makes it faster, and its tokenizer."""
    import mlx.core as mx
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(folder))[:2]
    if mx.default_device() == mx.Device(mx.cpu):
        _unpack(model)
    return model, tokenizer


def _folder(entry: CatalogueEntry, cache: ModelCache) -> Path:
    if entry.format == "mlx":  # of the hub, or an imported folder
        return cache.source(entry)
    return cache.derived(entry, FORM, to_mlx)


def _identity(folder: Path) -> str:
    """Return what tells these weights from any others."""
    files = sorted(folder.glob("*.safetensors"))
    return " ".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


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
