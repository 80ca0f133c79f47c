"""Chat with llama.cpp, through the in-process server object of xllamacpp.

That object also opens an HTTP server, which nobody here wants: it listens on a socket file in a
private folder, behind a random key, and the file is unlinked as soon as it is there, so that
nothing can connect to it.
"""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Any

import xllamacpp

from uait_server_ext.errors import ModelUnavailable, UaitError
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.gguf_convert import HALF_FILE, to_half
from uait_server_ext.inference.prompt import ChatPrompt

from .base import Emit, Generation, Loaded, Outcome, check_context

FORM = "llamacpp-1"  # raise the number when the conversion changes
PROMPT_CHUNK = 64  # tokens between two chances to cancel while the prompt is read
QUIET = -1


class LlamaCppChat:
    """A GGUF model on the CPU; keeps the last prompt's attention cache for the next one."""

    def __init__(self, entry: CatalogueEntry, cache: ModelCache, threads: int) -> None:
        folder = cache.derived(entry, FORM, to_half)
        self._entry = entry
        self._prompt = ChatPrompt(folder)
        self._server = _serve(folder / HALF_FILE, entry.context_tokens, threads)
        self.loaded = Loaded(entry.context_tokens)

    def generate(self, request: Generation, emit: Emit) -> Outcome:
        """Make one completion. Raises ``ContextTooLong`` before it has made anything."""
        tokens = self._prompt.tokens(request.messages)
        check_context(self._entry, self.loaded.context_tokens, len(tokens), request.max_tokens)
        reader = _Reader(emit, len(tokens))
        self._server.handle_completions(
            {
                "prompt": tokens,
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
                "min_p": 0.0,
                "seed": request.seed if request.seed is not None else secrets.randbits(31),
                # a prompt half read before has other rounding: a seed must repeat exactly
                "cache_prompt": request.seed is None,
                "stream": True,
                "return_progress": True,
                "stream_options": {"include_usage": True},
            },
            reader,
        )
        return reader.outcome()


class _Reader:
    """Hears llama.cpp's stream; a true answer stops it."""

    def __init__(self, emit: Emit, prompt_tokens: int) -> None:
        self._emit = emit
        self._outcome = Outcome("cancelled", prompt_tokens, 0)
        self._error: UaitError | None = None

    def __call__(self, event: dict[str, Any]) -> bool:
        if "error" in event:
            message = event["error"].get("message", event["error"])
            self._error = UaitError(f"llama.cpp could not answer: {message}")
            return True
        choice = event["choices"][0] if event["choices"] else {}
        if (reason := choice.get("finish_reason")) is not None:
            self._outcome.finish_reason = "length" if reason == "length" else "stop"
        if usage := event.get("usage"):
            self._outcome.completion_tokens = usage["completion_tokens"]
            return False
        if "prompt_progress" not in event and reason is None:
            self._outcome.completion_tokens += 1
        return not self._emit(choice.get("text", ""))

    def outcome(self) -> Outcome:
        """Return how it ended, or raise what llama.cpp said."""
        if self._error is not None:
            raise self._error
        return self._outcome


def _serve(model: Path, context: int, threads: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.n_batch = parameters.n_ubatch = PROMPT_CHUNK
    parameters.cache_ram_mib = 0  # the slot's own cache holds the last prompt; no second copy
    parameters.warmup = False
    parameters.verbosity = QUIET
    # Reading a prompt uses all threads. Threads of one token's step wait for each other hundreds
    # of times; with a busy neighbour on the last core each wait costs a time slice.
    parameters.cpuparams.n_threads = max(1, threads // 2)
    parameters.cpuparams_batch.n_threads = threads
    parameters.n_threads_http = 1
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.api_keys = [secrets.token_urlsafe(32)]
    with tempfile.TemporaryDirectory(prefix="uait-") as folder:
        parameters.hostnames = [str(Path(folder) / "unused.sock")]
        try:
            return xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise ModelUnavailable(f"llama.cpp could not load {model.name}: {error}") from error
