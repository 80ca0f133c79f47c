"""Chat with llama.cpp, through the in-process server object of xllamacpp.

That object batches what its slots have to do in a thread of its own, and finds prompts that begin
as an earlier one did. Each request waits for it in a thread, which passes on what comes; ``step``
hands that out. The object also opens an HTTP server, which nobody here wants: it listens on a
socket file in a private folder, behind a random key, and the file is unlinked as soon as it is
there, so that nothing can connect to it.
"""

from __future__ import annotations

import queue
import secrets
import tempfile
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xllamacpp

from uait_server_ext.errors import InvalidInput, ModelUnavailable
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.gguf_convert import HALF_FILE, to_half
from uait_server_ext.inference.prompt import ChatPrompt

from .base import STEP_SECONDS, Ended, Event, Failed, Generation, Loaded, check_context
from .lanes import Lanes
from .llamacpp_stream import Follower, LlamaStream

if TYPE_CHECKING:
    from uait_server_ext.inference.constraint import Grammar, Vocabulary

FORM = "llamacpp-1"  # raise the number when the conversion changes
STREAMS = 8
POOL_TOKENS = 16_384  # that all streams together may take, where one context is smaller
PROMPT_CHUNK = 128  # tokens of prompts between two steps of the other streams: see benchmarks
QUIET = -1


class LlamaCppChat:
    """A GGUF model on the CPU."""

    def __init__(
        self,
        entry: CatalogueEntry,
        cache: ModelCache,
        threads: int,
        *,
        draft: CatalogueEntry | None = None,
        streams: int = STREAMS,
    ) -> None:
        """Load the model, and a ``draft`` model with the same vocabulary, which guesses ahead."""
        folder = cache.derived(entry, FORM, to_half)
        self._entry = entry
        self._folder = folder
        self._prompt = ChatPrompt(folder)
        pool = max(entry.context_tokens, POOL_TOKENS)
        parameters = _parameters(folder / HALF_FILE, pool, streams, threads)
        if draft is not None:
            _speculate(parameters, cache.derived(draft, FORM, to_half) / HALF_FILE, threads)
        if entry.kv_bits is not None:
            _narrow(parameters, entry.kv_bits)
        self._server = serve(parameters)
        self._lanes: Lanes[LlamaStream] = Lanes(streams, pool)
        self._streams: dict[int, LlamaStream] = {}
        self._inbox: queue.SimpleQueue[tuple[LlamaStream, Any]] = queue.SimpleQueue()
        self._events: list[Event] = []  # of cancels, for the next step
        self.loaded = Loaded(entry.context_tokens, streams=streams, template=self._prompt.template)

    @property
    def busy(self) -> bool:
        """Whether some request has not ended yet."""
        return bool(len(self._lanes) or self._events)

    def start(self, number: int, request: Generation) -> None:
        """Queue one completion. Raises ``ContextTooLong`` or ``InvalidInput``."""
        if request.adapter is not None:
            raise InvalidInput(
                f"Adapters run on MLX only: ask for {self._entry.id}+{request.adapter.name}@mlx."
            )
        if any(message.get("images") for message in request.messages):
            raise InvalidInput(f"{self._entry.id} reads no images. Choose a model that sees.")
        if request.prompt is not None:
            prompt = self._prompt.encode(request.prompt, raw=True)
        else:
            prompt = self._prompt.tokens(request.messages, request.tools)
        check_context(self._entry, self.loaded.context_tokens, len(prompt), request.max_tokens)
        stream = LlamaStream(number, request, prompt)
        if request.grammar is not None:
            stream.hold_to(self._follower(request.grammar, request.max_tokens))
        self._lanes.add(
            number,
            stream,
            alone=stream.exact,
            tokens=len(prompt) + request.max_tokens,
        )

    def cancel(self, number: int) -> None:
        """Let go of a request; its slot hears of it with the next token or piece of its prompt."""
        stream = self._lanes.withdraw(number)
        if stream is None and number in self._streams:
            stream = self._streams.pop(number)
            stream.stopped = True
        if stream is not None:
            self._events.append(Ended(number, stream.outcome("cancelled")))

    def step(self) -> list[Event]:
        """Wait a moment for what comes from any stream, and return it."""
        while (place := self._lanes.admit()) is not None:
            self._streams[place.number] = place.item
            threading.Thread(target=self._run, args=(place.item,), daemon=True).start()
        events, self._events = self._events, []
        wait = not events
        while True:
            try:
                stream, said = self._inbox.get(timeout=STEP_SECONDS if wait else 0)
            except queue.Empty:
                return events
            wait = False
            events += self._heard(stream, said)

    def _run(self, stream: LlamaStream) -> None:
        """Answer one request, in a thread of its own."""

        def hear(said: dict[str, Any]) -> bool:
            self._inbox.put((stream, said))
            return stream.stopped

        error: Exception | None = None
        try:
            if not stream.stopped:
                self._server.handle_completions(stream.body(), hear)
        except Exception as caught:
            error = caught
        self._inbox.put((stream, error))

    def _heard(self, stream: LlamaStream, said: Any) -> list[Event]:
        """Turn what llama.cpp said into events; None and errors are the last of a stream."""
        over = not isinstance(said, dict)
        if over:
            self._lanes.release(stream.number)
        if stream.number not in self._streams:  # cancelled, and told so
            return []
        try:
            if isinstance(said, Exception):
                raise said
            events: list[Event] = []
            if isinstance(said, dict):
                events += stream.hear(said)
            if over or stream.stopped:
                del self._streams[stream.number]
                events.append(Ended(stream.number, stream.outcome()))
        except Exception as error:
            stream.stopped = True
            del self._streams[stream.number]
            return [Failed(stream.number, error)]
        return events

    def _follower(self, grammar: Grammar, budget: int) -> Follower:
        from uait_server_ext.inference.constraint import Constraint

        vocabulary = self._vocabulary
        constraint = Constraint(grammar, vocabulary, budget=budget)
        return Follower(grammar.text(vocabulary.special), constraint, self._prompt)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from uait_server_ext.inference.constraint import Vocabulary

        return Vocabulary.load(self._folder, ends=self._prompt.ends)


def _parameters(model: Path, pool: int, streams: int, threads: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = pool
    parameters.n_parallel = streams
    parameters.kv_unified = True  # one stream may take what the others leave
    parameters.n_batch = parameters.n_ubatch = PROMPT_CHUNK
    parameters.cache_ram_mib = 0  # the slots' own caches hold the last prompts; no second copy
    parameters.warmup = False
    parameters.verbosity = QUIET
    # Reading a prompt uses all threads. Threads of one token's step wait for each other hundreds
    # of times; with a busy neighbour on the last core each wait costs a time slice.
    parameters.cpuparams.n_threads = max(1, threads // 2)
    parameters.cpuparams_batch.n_threads = threads
    return parameters


def _speculate(parameters: Any, draft: Path, threads: int) -> None:
    parameters.speculative.types = [
        xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
    ]
    parameters.speculative.draft.mparams.path = str(draft)
    parameters.speculative.draft.cpuparams.n_threads = max(1, threads // 2)
    parameters.speculative.draft.cpuparams_batch.n_threads = threads


def _narrow(parameters: Any, bits: int) -> None:
    types = xllamacpp.ggml_type
    narrow = {4: types.GGML_TYPE_Q4_0, 8: types.GGML_TYPE_Q8_0}[bits]
    parameters.cache_type_k = parameters.cache_type_v = narrow
    flash = xllamacpp.llama_flash_attn_type
    parameters.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_ENABLED  # values need it


def serve(parameters: Any) -> Any:
    """Return a server object that nobody can connect to. Raises ``ModelUnavailable``."""
    parameters.n_threads_http = 1
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.api_keys = [secrets.token_urlsafe(32)]
    with tempfile.TemporaryDirectory(prefix="uait-") as folder:
        parameters.hostnames = [str(Path(folder) / "unused.sock")]
        try:
            return xllamacpp.Server(parameters)
        except RuntimeError as error:
            model = Path(parameters.model.path).name
            raise ModelUnavailable(f"llama.cpp could not load {model}: {error}") from error
