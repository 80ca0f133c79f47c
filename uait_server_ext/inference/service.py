"""The models that run on this machine, as one service: chat, embeddings, and the catalogue.

Which backend runs a model:

=========== ===============================================================================
``gguf``    MLX where it has Metal or CUDA; else llama.cpp where it is installed; else MLX
``mlx``     MLX
``bert``    ONNX Runtime
``echo``    echo
=========== ===============================================================================

A request may force one by a suffix of the model id: ``smollm2-135m-instruct@mlx``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from uait_server_ext.errors import DependencyMissing, ModelNotFound, ModelUnavailable

from . import machine
from .cache import ModelCache, OnProgress
from .catalogue import Catalogue, CatalogueEntry
from .embedder import BatchingEmbedder
from .models import (
    DEFAULT_MODEL,
    ChatDone,
    ChatEvent,
    ChatRequest,
    Embedder,
    ModelInfo,
    ModelState,
    PullProgress,
    ServiceState,
    TextDelta,
    Usage,
)
from .runner import ModelRunner

BackendChoice = Literal["auto", "mlx", "llamacpp"]

BACKENDS = {
    "gguf": ("mlx", "llamacpp"),
    "mlx": ("mlx",),
    "bert": ("onnxruntime",),
    "echo": ("echo",),
}
NEEDED_MODULES = {"mlx": ("mlx", "mlx_lm"), "llamacpp": ("xllamacpp",)}
STATES: dict[str, ModelState] = {"loading": "loading", "loaded": "loaded", "failed": "failed"}


class Inference:
    """Loads models on their first use, each in a process of its own, and runs requests on them."""

    def __init__(
        self,
        *,
        cache: ModelCache,
        catalogue: Catalogue,
        chat_model: str = DEFAULT_MODEL,
        embedding_model: str = DEFAULT_MODEL,
        backend: BackendChoice = "auto",
        auto_pull: bool = True,
        threads: int | None = None,
        queue_limit: int = 16,
        log: logging.Logger,
    ) -> None:
        self._cache = cache
        self._catalogue = catalogue
        self._chat_model = chat_model
        self._embedding = catalogue.get(embedding_model, "embedding")
        self._backend = backend
        self._auto_pull = auto_pull
        self._threads = threads or machine.default_threads()
        self._queue_limit = queue_limit
        self._log = log
        self._runners: dict[tuple[str, str], ModelRunner] = {}
        self._stopped = False
        assert self._embedding.dimension is not None
        self._embedder = BatchingEmbedder(
            self._embedding.id,
            self._embedding.dimension,
            lambda: self._runner(self._embedding, "onnxruntime"),
        )

    async def start(self) -> None:
        """Check the configured models; they are loaded by the first request to them.

        Raises ``ModelNotFound`` when the configured chat model is not in the catalogue.
        """
        entry, backend = self._chosen(DEFAULT_MODEL)
        self._log.info("chat runs %s on %s", entry.id, backend)

    async def stop(self) -> None:
        """End all workers within two seconds; requests under way fail."""
        self._stopped = True
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))

    @property
    def embedder(self) -> Embedder:
        """The configured embedding model."""
        return self._embedder

    async def models(self) -> list[ModelInfo]:
        """Return every model of the catalogue and how it stands here."""
        # in a thread, because it looks at files: those of models and of installed modules
        return await asyncio.to_thread(lambda: [self._info(x) for x in self._catalogue.entries])

    def check(self, model: str) -> None:
        """Raise `ModelNotFound` where no chat model has that id, or not with that backend."""
        self._chosen(model)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Stream a completion: ``TextDelta`` as text comes, ``ChatDone`` last.

        Closing the iterator cancels the completion. Raises ``ModelNotFound``, ``Busy``,
        ``ContextTooLong``, ``ModelUnavailable`` or ``WorkerDied``.
        """
        entry, backend = self._chosen(request.model)
        began = time.monotonic()
        first: float | None = None
        text: list[str] = []
        message = {"type": "chat", "request": request.model_dump(mode="json")}
        async with aclosing(self._runner(entry, backend).stream(message)) as frames:
            async for frame in frames:
                said = frame.message
                seconds = time.monotonic() - began
                if said["type"] == "delta":
                    first = first if first is not None else seconds
                    text.append(said["text"])
                    yield TextDelta(text=said["text"])
                elif said["type"] == "done":
                    yield ChatDone(
                        text="".join(text),
                        model=entry.id,
                        backend=backend,
                        finish_reason=said["finish_reason"],
                        usage=Usage(
                            prompt_tokens=said["prompt_tokens"],
                            completion_tokens=said["completion_tokens"],
                        ),
                        first_token_seconds=first if first is not None else seconds,
                        seconds=seconds,
                    )

    async def pull(self, model: str, progress: OnProgress | None = None) -> None:
        """Fetch a model's files; ``progress`` is called in another thread.

        Raises ``ModelNotFound``, ``ModelUnavailable``.
        """
        await self._pull(self._catalogue.get(model), progress)

    async def unload(self, model: str) -> None:
        """Give a model's memory back when its requests under way have ended."""
        wanted = self._catalogue.get(model).id
        runners = [runner for (name, _), runner in self._runners.items() if name == wanted]
        await asyncio.gather(*(runner.unload() for runner in runners))

    def state(self) -> list[ServiceState]:
        """Return how chat and embeddings stand, for the health report."""
        chat = self._chosen(DEFAULT_MODEL)
        return [
            self._service_state("chat", *chat),
            self._service_state("embeddings", self._embedding, "onnxruntime"),
        ]

    def _chosen(self, model: str) -> tuple[CatalogueEntry, str]:
        """Return the entry and the backend that a request names. Raises ``ModelNotFound``."""
        name, _, forced = model.partition("@")
        if name == DEFAULT_MODEL:
            name = self._chat_model
        entry = self._catalogue.get(name, "chat")
        able = BACKENDS[entry.format]
        if forced and forced not in able:
            raise ModelNotFound(
                f"{entry.id} does not run on '{forced}'. It runs on: {', '.join(able)}."
            )
        return entry, forced or self._backend_for(entry)

    def _backend_for(self, entry: CatalogueEntry) -> str:
        able = BACKENDS[entry.format]
        if len(able) == 1:
            return able[0]
        if self._backend != "auto":
            return self._backend
        if not machine.has_accelerator() and _missing("llamacpp") is None:
            return "llamacpp"
        return "mlx"

    def _runner(self, entry: CatalogueEntry, backend: str) -> ModelRunner:
        key = entry.id, backend
        if key not in self._runners:
            if self._stopped:
                raise ModelUnavailable("The model service has stopped.")
            self._runners[key] = ModelRunner(
                entry,
                backend,
                cache=self._cache,
                threads=self._threads,
                queue_limit=self._queue_limit,
                prepare=lambda: self._prepare(entry, backend),
                log=self._log,
            )
        return self._runners[key]

    async def _prepare(self, entry: CatalogueEntry, backend: str) -> None:
        """Make sure that the model can be loaded: backend, memory, files."""
        if (missing := _missing(backend)) is not None:
            raise DependencyMissing(missing)
        if (reason := _too_large(entry)) is not None:
            raise ModelUnavailable(reason)
        if await asyncio.to_thread(self._cache.has, entry):
            return
        if not self._auto_pull:
            raise ModelUnavailable(
                f"{entry.id} is not on this machine. Run `uait models pull {entry.id}`."
            )
        self._log.info("fetching %s from %s", entry.id, entry.source)
        await self._pull(entry, None)

    async def _pull(self, entry: CatalogueEntry, progress: OnProgress | None) -> None:
        def tell(heard: PullProgress) -> None:
            if self._stopped:
                raise ModelUnavailable("The model service is stopping; nothing was kept.")
            if progress is not None:
                progress(heard)

        await asyncio.to_thread(self._cache.pull, entry, tell)

    def _info(self, entry: CatalogueEntry) -> ModelInfo:
        backend = self._backend_for(entry)
        missing = _missing(backend) or _too_large(entry)
        runners = [runner for (name, _), runner in self._runners.items() if name == entry.id]
        states = {STATES[runner.state] for runner in runners if runner.state in STATES}
        known: ModelState = "pulled" if self._cache.has(entry) else "not-pulled"
        state = next((s for s in ("loaded", "loading", "failed") if s in states), known)
        return ModelInfo(
            id=entry.id,
            kind=entry.kind,
            description=entry.description,
            source=entry.source,
            licence=entry.licence,
            size_bytes=entry.size_bytes,
            memory_bytes=entry.memory_bytes,
            context_tokens=entry.context_tokens,
            dimension=entry.dimension,
            state=state,
            backend=None if missing else backend,
            default=entry.id in (self._chosen(DEFAULT_MODEL)[0].id, self._embedding.id),
            note=missing or self._note(entry, backend, runners),
        )

    def _note(self, entry: CatalogueEntry, backend: str, runners: list[ModelRunner]) -> str | None:
        for runner in runners:
            if note := runner.reason or runner.ready.get("note"):
                return str(note)
        if backend == "mlx" and not machine.has_accelerator():
            return "MLX has no Metal or CUDA here and runs on the CPU: expect it to be slow."
        if entry.format == "gguf" and backend == "llamacpp" and self._backend == "auto":
            return "llama.cpp, because MLX has no Metal or CUDA here."
        return None

    def _service_state(self, name: str, entry: CatalogueEntry, backend: str) -> ServiceState:
        runner = self._runners.get((entry.id, backend))
        if self._stopped:
            return ServiceState(name, "stopped")
        if runner is None or runner.state == "stopped":
            return ServiceState(name, "ready", f"{entry.id} on {backend}, loaded on first use")
        if runner.state == "loading":
            return ServiceState(name, "starting", f"{entry.id} on {backend} is being loaded")
        if runner.state == "failed":
            return ServiceState(name, "failed", runner.reason)
        return ServiceState(name, "ready", f"{entry.id} on {backend}")


def _missing(backend: str) -> str | None:
    """Say which package a backend lacks here, if it does."""
    absent = [name for name in NEEDED_MODULES.get(backend, ()) if not machine.has_module(name)]
    if not absent:
        return None
    return (
        f"The {backend} backend is not installed here (no module {' and '.join(absent)}). On "
        "Linux install the extra 'uait[linux-cpu]'."
    )


def _too_large(entry: CatalogueEntry) -> str | None:
    """Say that a model does not fit into this machine's memory, if it does not."""
    memory = machine.memory_bytes()
    if entry.memory_bytes <= memory:
        return None
    return (
        f"{entry.id} needs {entry.memory_bytes / 1e9:.0f} GB of memory and this machine has "
        f"{memory / 1e9:.0f} GB. Choose a smaller model."
    )
