"""Composition root: the one place where concrete classes meet.

Heavy packages (duckdb, usearch, tantivy, numpy) are imported in a thread when the server has
started, so that neither its start nor its event loop waits for them.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from .errors import Unavailable
from .paths import private_folder

if TYPE_CHECKING:
    from .inference.service import Inference
    from .knowledge.service import KnowledgeBase

Backend = Literal["auto", "mlx", "llamacpp"]


class ServiceState(BaseModel):
    """How one part of the server stands."""

    name: str
    state: Literal["ready", "starting", "stopped", "failed"]
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the services need to know; the traits of `UaitApp` in plain Python."""

    data_dir: Path
    model_cache: Path
    root_dir: Path
    base_url: str = "/"
    chat_model: str = "auto"
    embedding_model: str = "all-minilm-l6-v2"
    backend: Backend = "auto"
    auto_pull: bool = True
    knowledge_roots: tuple[Path, ...] = ()
    max_file_bytes: int = 50 * 1024 * 1024


class Services:
    """Build, start and stop the services; hand them to operations."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        self.settings = settings
        self.log = log
        self._started: asyncio.Future[None] | None = None
        self._inference: Inference | None = None
        self._knowledge: KnowledgeBase | None = None

    @property
    def base_url(self) -> str:
        """The server's base URL, with which every path of the API begins."""
        return self.settings.base_url

    def start(self) -> None:
        """Begin to build the services in the background; needs a running event loop."""
        if self._started is None:
            self._started = asyncio.ensure_future(self._build())
            self._started.add_done_callback(self._report)

    async def stop(self) -> None:
        """Stop what was started: model workers first refuse, then end."""
        if self._started is None:
            return
        self._started.cancel()
        await asyncio.wait({self._started})
        if self._knowledge:
            await self._knowledge.stop()
        if self._inference:
            await self._inference.stop()
        self._knowledge = self._inference = self._started = None

    async def inference(self) -> Inference:
        """Return the models that run here.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._inference
        return self._inference

    async def knowledge(self) -> KnowledgeBase:
        """Return the knowledge base.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._knowledge
        return self._knowledge

    @property
    def built(self) -> bool:
        """Whether the services are there to take requests."""
        return self._knowledge is not None

    def states(self) -> list[ServiceState]:
        """Return the state of each service, without waiting for one."""
        if self._started is None or not self._started.done():
            return [ServiceState(name="services", state="starting")]
        if self._started.cancelled() or self._started.exception() is not None:
            return [ServiceState(name="services", state="failed", detail="see the server's log")]
        assert self._inference
        assert self._knowledge
        return [
            ServiceState(name=name, state=state, detail=detail)
            for service in (self._inference, self._knowledge)
            for name, state, detail in service.state()
        ]

    async def _ready(self) -> None:
        self.start()
        assert self._started
        try:
            await asyncio.shield(self._started)
        except Exception as error:
            raise Unavailable(
                "UAIT's services did not start; the server's log has the reason. Mend it and "
                "restart the server."
            ) from error

    async def _build(self) -> None:
        for module in ("inference.service", "knowledge.service"):
            await asyncio.to_thread(importlib.import_module, f"uait_server_ext.{module}")
        from .inference.cache import ModelCache
        from .inference.catalogue import Catalogue
        from .inference.service import Inference
        from .knowledge.service import KnowledgeBase

        settings = self.settings
        inference = Inference(
            cache=ModelCache(private_folder(settings.model_cache)),
            catalogue=Catalogue.load(),
            chat_model=settings.chat_model,
            embedding_model=settings.embedding_model,
            backend=settings.backend,
            auto_pull=settings.auto_pull,
            log=self.log,
        )
        knowledge = KnowledgeBase(
            private_folder(settings.data_dir / "knowledge"),
            embedder=inference.embedder,
            chat=inference,
            root_dir=settings.root_dir,
            allowed_roots=(settings.root_dir, *settings.knowledge_roots),
            max_file_bytes=settings.max_file_bytes,
            log=self.log,
        )
        await inference.start()
        await knowledge.start()
        self._inference, self._knowledge = inference, knowledge

    def _report(self, started: asyncio.Future[None]) -> None:
        if not started.cancelled() and (error := started.exception()):
            self.log.error("UAIT's services did not start", exc_info=error)
