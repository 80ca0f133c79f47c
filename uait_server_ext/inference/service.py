"""The models that run on this machine, as one service: chat, completions, embeddings, catalogue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from uait_server_ext.errors import DependencyMissing, ModelUnavailable

from . import machine
from .answering import answer
from .backends.base import Embedded
from .cache import VECTORS, ModelCache, OnProgress
from .catalogue import Catalogue, CatalogueEntry
from .choice import BackendChoice, Choice, Chooser, missing, too_large
from .embedder import BatchingEmbedder
from .library import Library, Wanted
from .memory import ModelMemory
from .models import (
    DEFAULT_MODEL,
    ChatEvent,
    ChatRequest,
    CompletionRequest,
    Embedder,
    EmbedPurpose,
    ModelInfo,
    PullProgress,
    ServiceState,
)
from .registry import Registry
from .rerank import Reranker, Reranking, reranking_model
from .runner import Limits, ModelRunner
from .standing import model_info, service_state, statistics
from .tally import ModelStatistics
from .vector_cache import GRAPH_FORM, VectorCache
from .vision import BACKEND as SEEING_BACKEND
from .vision import check_vision, images_of

MEMORY_SHARE = 0.75  # of this machine's, for all models together, where nothing else is said


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
        memory_budget: int = 0,
        keep_alive: float = 0.0,
        streams: int = 0,
        queue_limit: int = 16,
        log: logging.Logger,
    ) -> None:
        """Take what it needs; nothing is loaded yet.

        ``memory_budget`` is in bytes (0: a share of the machine's), ``keep_alive`` in seconds (0:
        a model stays until another needs its memory), ``streams`` caps the requests that a model
        serves at once (0: as many as its backend can); ``queue_limit`` those that wait for it.
        """
        self._cache = cache
        self._catalogue = catalogue
        self._chooser = Chooser(catalogue, cache, default=chat_model, backend=backend)
        self._embedding = catalogue.get(embedding_model, "embedding")
        self._auto_pull = auto_pull
        self._threads = threads or machine.default_threads()
        self._limits = Limits(streams=streams, queue=queue_limit, keep_alive=keep_alive)
        self._memory = ModelMemory(memory_budget or int(machine.memory_bytes() * MEMORY_SHARE))
        self._log = log
        self._runners: dict[tuple[str, str], ModelRunner] = {}
        self._stopped = False
        self._embedders: dict[str, BatchingEmbedder] = {}
        self._rerankers: dict[str, Reranker] = {}
        self.library = Library(cache, catalogue, Registry(cache.root))

    async def start(self) -> None:
        """Check the configured models; they are loaded by the first request to them.

        Raises ``ModelNotFound`` when the configured chat model is not in the catalogue.
        """
        choice = self._chooser.chat(DEFAULT_MODEL)
        self._log.info("chat runs %s on %s", choice.id, choice.backend)

    async def stop(self) -> None:
        """End all workers within two seconds; requests under way fail."""
        self._stopped = True
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))

    @property
    def embedder(self) -> Embedder:
        """The configured embedding model."""
        return self._embedder(self._embedding)

    async def models(self) -> list[ModelInfo]:
        """Return every model of the catalogue and how it stands here."""
        # in a thread, because it looks at files: those of models and of installed modules
        return await asyncio.to_thread(self._infos)

    def check(self, model: str) -> None:
        """Raise `ModelNotFound` where no chat model has that id, or not with that backend."""
        self._chooser.chat(model)

    async def chat(
        self, request: ChatRequest, *, caller: str = ""
    ) -> AsyncGenerator[ChatEvent, None]:
        """Stream a completion: ``TextDelta`` as text comes, ``ChatDone`` last.

        Closing the iterator cancels the completion; ``caller`` is whose share of the model it
        takes. Raises ``ModelNotFound``, ``Busy``, ``ContextTooLong``, ``DeadlineExceeded``,
        ``InvalidInput`` for what the model cannot honour, ``ModelUnavailable`` or ``WorkerDied``.
        """
        async with aclosing(self._answer(request, caller)) as events:
            async for event in events:
                yield event

    async def complete(
        self, request: CompletionRequest, *, caller: str = ""
    ) -> AsyncGenerator[ChatEvent, None]:
        """Go on with a text, without a chat template; streams and raises as ``chat``."""
        async with aclosing(self._answer(request, caller)) as events:
            async for event in events:
                yield event

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = DEFAULT_MODEL,
        purpose: EmbedPurpose = "query",
        caller: str = "",
    ) -> Embedded:
        """Return the vectors of texts and the tokens that were read of each.

        Raises ``ModelNotFound``, ``Busy``, ``ModelUnavailable`` or ``WorkerDied``.
        """
        entry = self._embedding
        if model != DEFAULT_MODEL:
            entry = self._catalogue.get(model, "embedding")
        embedder = self._embedder(entry)
        return await embedder.embed_counted(texts, purpose=purpose, caller=caller)

    async def rerank(
        self, query: str, texts: Sequence[str], *, model: str = DEFAULT_MODEL, caller: str = ""
    ) -> Reranking:
        """Return a score of each text; its note says how, where no cross-encoder is here.

        Raises ``ModelNotFound``, ``Busy``, ``ModelUnavailable`` or ``WorkerDied``.
        """
        entry = await asyncio.to_thread(
            reranking_model, self._catalogue, self._cache, self._embedding, model
        )
        if entry.id not in self._rerankers:
            self._rerankers[entry.id] = Reranker(
                entry, lambda: self._runner(entry, self._chooser.backend(entry))
            )
        return await self._rerankers[entry.id].rerank(query, texts, caller=caller)

    async def import_model(
        self, wanted: Wanted, progress: OnProgress | None = None
    ) -> CatalogueEntry:
        """Copy a model folder or GGUF file into the cache; ``progress`` as of ``pull``.

        Raises ``InvalidInput``, ``Conflict`` or ``ModelUnavailable``.
        """
        return await asyncio.to_thread(self.library.import_model, wanted, progress)

    async def remove(self, model: str) -> int:
        """Delete a model's or adapter's (``base+name``) files; return the bytes freed.

        Raises ``ModelNotFound``, or ``Conflict`` while it is loaded, here or elsewhere.
        """
        return await asyncio.to_thread(self.library.remove, model)

    async def pull(self, model: str, progress: OnProgress | None = None) -> None:
        """Fetch a model's files; ``progress`` is called in another thread.

        Raises ``ModelNotFound``, ``ModelUnavailable``.
        """
        await self._pull(self._catalogue.get(model), progress)

    async def load(self, model: str) -> None:
        """Load a model now rather than with its first request.

        Raises ``ModelNotFound``, ``ModelUnavailable``, also where its memory is not to be had.
        """
        entry = self._catalogue.get(model.partition("@")[0].partition("+")[0])
        choice = Choice(entry, self._chooser.backend(entry))
        if entry.kind == "chat":
            choice = self._chooser.chat(model)
        await self._runner(choice.entry, choice.backend).load()

    async def unload(self, model: str) -> None:
        """Give a model's memory back when its requests under way have ended.

        Raises ``ModelNotFound``.
        """
        wanted = self._catalogue.get(model).id
        runners = [runner for (name, _), runner in self._runners.items() if name == wanted]
        await asyncio.gather(*(runner.unload() for runner in runners))

    def state(self) -> list[ServiceState]:
        """Return how chat and embeddings stand, for the health report."""
        chat = self._chooser.chat(DEFAULT_MODEL)
        embedding = Choice(self._embedding, self._chooser.backend(self._embedding))
        return [
            ServiceState(name, "stopped")
            if self._stopped
            else service_state(name, choice, self._runners.get((choice.entry.id, choice.backend)))
            for name, choice in (("chat", chat), ("embeddings", embedding))
        ]

    def statistics(self) -> list[ModelStatistics]:
        """Return what each model that was asked has done and does, for metrics."""
        return [statistics(runner) for runner in self._runners.values()]

    def _infos(self) -> list[ModelInfo]:
        defaults = self._chooser.chat(DEFAULT_MODEL).entry.id, self._embedding.id
        return [
            model_info(
                entry,
                chooser=self._chooser,
                here=self._cache.has(entry),
                default=entry.id in defaults,
                runners=[r for (name, _), r in list(self._runners.items()) if name == entry.id],
            )
            for entry in self._catalogue.entries
        ]

    def _answer(
        self, request: ChatRequest | CompletionRequest, caller: str
    ) -> AsyncGenerator[ChatEvent, None]:
        choice = self._chooser.chat(request.model)
        if isinstance(request, ChatRequest) and (images := images_of(request.messages)):
            check_vision(choice.entry, images)
            choice = choice._replace(backend=SEEING_BACKEND)
        return answer(choice, self._runner(choice.entry, choice.backend), request, caller)

    def _runner(self, entry: CatalogueEntry, backend: str) -> ModelRunner:
        key = entry.id, backend
        if key not in self._runners:
            if self._stopped:
                raise ModelUnavailable("The model service has stopped.")
            draft = self._chooser.draft(entry)
            self._runners[key] = ModelRunner(
                entry,
                backend,
                draft=draft,
                cache=self._cache,
                memory=self._memory,
                threads=self._threads,
                limits=self._limits,
                prepare=lambda: self._prepare(backend, *filter(None, (entry, draft))),
                log=self._log,
            )
        return self._runners[key]

    def _embedder(self, entry: CatalogueEntry) -> BatchingEmbedder:
        if entry.id not in self._embedders:
            assert entry.dimension is not None
            self._embedders[entry.id] = BatchingEmbedder(
                entry.id,
                entry.dimension,
                lambda: self._runner(entry, self._chooser.backend(entry)),
                cache=VectorCache(
                    self._cache.root / entry.id / VECTORS,
                    f"{entry.digest} {GRAPH_FORM}",
                    entry.dimension,
                ),
            )
        return self._embedders[entry.id]

    async def _prepare(self, backend: str, *entries: CatalogueEntry) -> None:
        """Make sure that the model can be loaded: backend, memory, files."""
        if (absent := missing(backend)) is not None:
            raise DependencyMissing(absent)
        for entry in entries:
            if (reason := too_large(entry)) is not None:
                raise ModelUnavailable(reason)
            if await asyncio.to_thread(self._cache.has, entry):
                continue
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
