"""Composition root: the one place where concrete classes meet.

Heavy packages (duckdb, usearch, tantivy, numpy) are imported in a thread when the server has
started, so that neither its start nor its event loop waits for them.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uait_server_ext.schema import Schema

from .errors import Unavailable
from .paths import private_folder

if TYPE_CHECKING:
    from .events.audit import AuditLog
    from .identity.service import Identity, IdentitySettings
    from .inference.service import Inference
    from .inference.tuning.service import Tuning
    from .knowledge.service import KnowledgeBase
    from .resilience.limits import RateLimits
    from .routing.assembly import RoutingParts
    from .routing.budget import Budgets
    from .routing.service import Router
    from .storage.database import Database
    from .storage.sealing import Sealer
    from .vault.service import Vault

Backend = Literal["auto", "mlx", "llamacpp"]

ROUTER = "system:router"
"""Who leases the keys of providers; nobody can log in as that."""


class ServiceState(Schema):
    """How one part of the server stands."""

    name: str
    state: Literal["ready", "starting", "stopped", "degraded", "failed"]
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
    memory_budget: int = 0
    model_keep_alive: float = 1800.0
    model_streams: int = 0
    model_queue: int = 16
    knowledge_roots: tuple[Path, ...] = ()
    max_file_bytes: int = 50 * 1024 * 1024
    database_url: str = ""
    master_key: str = "file:"
    secret_sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    routing_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Foundation:
    """What identity, vault and every later domain stand on: rows, sealed values, the audit log."""

    database: Database
    sealer: Sealer
    audit: AuditLog

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_foundation(settings: Settings, *, check: bool = True) -> Foundation:
    """Open the database and the master key; blocks, as a server without them must not start.

    Args:
        check: off only to accept a restored state, whose seals do not hold until then.

    Raises:
        Conflict: a newer UAIT has written the database.
        SealBroken: sealed values were changed, or put back to an older state.
        Unavailable: the database or the master key cannot be opened.
    """
    from .events.audit import AuditLog
    from .storage.database import Database, sqlite_url
    from .storage.key_sources import open_source
    from .storage.master_key import open_keyring
    from .storage.sealing import Sealer

    state = private_folder(settings.data_dir)
    database = Database(settings.database_url or sqlite_url(state / "uait.db"))
    database.open()
    try:
        source = open_source(settings.master_key, private_folder(state / "keys"))
        sealer = Sealer(open_keyring(database, source))
        audit = AuditLog(database, sealer, state / "audit.anchor")
        if check:
            audit.open()
    except BaseException:
        database.close()
        raise
    return Foundation(database, sealer, audit)


def open_identity(settings: IdentitySettings, foundation: Foundation) -> Identity:
    """Put the identity of a server together; blocks.

    Raises:
        Unavailable: the store of sessions, or the keys that sign tokens, cannot be opened.
    """
    from .identity.service import Identity
    from .routing.budget import Budgets
    from .vault.service import Vault

    identity = Identity(
        settings,
        database=foundation.database,
        sealer=foundation.sealer,
        audit=foundation.audit,
    )
    identity.directory.on_delete.append(
        Vault(foundation.database, foundation.sealer, foundation.audit).forget_user
    )
    identity.directory.on_delete.append(Budgets(foundation.database).forget)
    # In a thread of its own: this one has the server's event loop, which does not run yet.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, identity.tokens.open()).result()
    return identity


def open_tuning(
    settings: Settings,
    database: Database,
    *,
    allowed_roots: Sequence[Path] = (),
    log: logging.Logger,
) -> Tuning:
    """Put tuning together; examples are read from the server's folders and ``allowed_roots``."""
    from .inference.library import Library
    from .inference.tuning.service import Tuning

    return Tuning(
        database=database,
        library=Library.open(private_folder(settings.model_cache)),
        folder=settings.data_dir / "tuning",
        allowed_roots=(settings.root_dir, *settings.knowledge_roots, *allowed_roots),
        log=log,
    )


class Services:
    """Build, start and stop the services; hand them to operations."""

    def __init__(
        self,
        settings: Settings,
        log: logging.Logger,
        *,
        foundation: Foundation | None = None,
        identity: Identity | None = None,
        limits: RateLimits | None = None,
    ) -> None:
        self.settings = settings
        self.log = log
        self._foundation = foundation
        self._identity = identity
        self.limits = limits
        self._vault: Vault | None = None
        self._started: asyncio.Future[None] | None = None
        self._inference: Inference | None = None
        self._knowledge: KnowledgeBase | None = None
        self._tuning: Tuning | None = None
        self._routing: RoutingParts | None = None

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
        if self._tuning:
            await self._tuning.stop()
        if self._knowledge:
            await self._knowledge.stop()
        if self._routing:
            await self._routing.stop()
        if self._inference:
            await self._inference.stop()
        self._knowledge = self._inference = self._vault = self._tuning = self._started = None
        self._routing = None
        if self.limits:
            await self.limits.close()
        if self._identity:
            await self._identity.close()
        if self._foundation:
            await asyncio.to_thread(self._foundation.close)
            self._foundation = None

    @property
    def identity(self) -> Identity:
        """Return who people and callers are here.

        Raises:
            Unavailable: this server has Jupyter's own login.
        """
        if self._identity is None:
            raise Unavailable(
                "This server has Jupyter's own login, so it knows no people, keys or factors. "
                "Start it with `uait lab` to have them."
            )
        return self._identity

    @property
    def has_identity(self) -> bool:
        """Whether UAIT decides who is who here; else Jupyter's own login does."""
        return self._identity is not None

    async def foundation(self) -> Foundation:
        """Return the database, the sealer and the audit log.

        Raises:
            Unavailable: they could not be opened; the server's log has the reason.
        """
        if self._foundation is None:
            await self._ready()
        assert self._foundation
        return self._foundation

    async def vault(self) -> Vault:
        """Return the secrets.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._vault
        return self._vault

    async def inference(self) -> Inference:
        """Return the models that run here.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._inference
        return self._inference

    async def router(self) -> Router:
        """Return what chooses the model that answers.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._routing
        return self._routing.router

    async def budgets(self) -> Budgets:
        """Return the limits of what calls of models may take.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._routing
        return self._routing.budgets

    async def knowledge(self) -> KnowledgeBase:
        """Return the knowledge base.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._knowledge
        return self._knowledge

    async def tuning(self) -> Tuning:
        """Return the jobs that teach models.

        Raises:
            Unavailable: the services could not be built; the server's log has the reason.
        """
        await self._ready()
        assert self._tuning
        return self._tuning

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
        assert self._routing
        states = [
            ServiceState(name=name, state=state, detail=detail)
            for service in (self._inference, self._knowledge, self._routing.router)
            for name, state, detail in service.state()
        ]
        if self.limits:
            limits = self.limits.state
            states.append(ServiceState(name="limits", state=limits.state, detail=limits.detail))
        return states

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
        for module in (
            *("inference.service", "inference.tuning.service"),
            *("knowledge.service", "vault.service", "routing.assembly"),
        ):
            await asyncio.to_thread(importlib.import_module, f"uait_server_ext.{module}")
        if self._foundation is None:
            self._foundation = await asyncio.to_thread(open_foundation, self.settings)
        from .inference.cache import ModelCache
        from .inference.catalogue import Catalogue
        from .inference.registry import Registry
        from .inference.service import Inference
        from .knowledge.service import KnowledgeBase

        settings = self.settings
        inference = Inference(
            cache=ModelCache(private_folder(settings.model_cache)),
            catalogue=Catalogue.load(registry=Registry(settings.model_cache)),
            chat_model=settings.chat_model,
            embedding_model=settings.embedding_model,
            backend=settings.backend,
            auto_pull=settings.auto_pull,
            memory_budget=settings.memory_budget,
            keep_alive=settings.model_keep_alive,
            streams=settings.model_streams,
            queue_limit=settings.model_queue,
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
        tuning = open_tuning(settings, self._foundation.database, log=self.log)
        await tuning.start()
        self._tuning = tuning
        self._inference, self._knowledge = inference, knowledge
        self._vault = self._open_vault(self._foundation)
        self._routing = await self._open_routing(inference, self._foundation, self._vault)
        await self._vault.scrub(os.environ)
        if not gc.get_freeze_count():
            # What was imported stays: left to the garbage collector, each of its full rounds
            # walks through all of it and holds the event loop for a tenth of a second.
            gc.freeze()

    def _open_vault(self, foundation: Foundation) -> Vault:
        from .vault.service import Vault
        from .vault.sources import KeyValueSource

        sources = {
            name: KeyValueSource(
                place["address"],
                Path(place["token_file"]).expanduser().read_text("utf-8").strip(),
                place.get("namespace"),
            )
            for name, place in self.settings.secret_sources.items()
        }
        identity = self._identity
        if identity is None:
            return Vault(foundation.database, foundation.sealer, foundation.audit, sources=sources)
        return Vault(
            foundation.database,
            foundation.sealer,
            foundation.audit,
            sources=sources,
            active=lambda c, user: user == ROUTER or identity.directory.is_active(c, user),
        )

    async def _open_routing(
        self, inference: Inference, foundation: Foundation, vault: Vault
    ) -> RoutingParts:
        from .identity.principal import Principal
        from .routing.assembly import assemble
        from .routing.config import read_routing
        from .vault.models import LeaseRequest

        settings = self.settings
        router = Principal(ROUTER, "router", kind="service", permissions=frozenset({"vault:use"}))
        file = settings.routing_file or settings.data_dir / "routing.toml"
        routing = await asyncio.to_thread(read_routing, file)
        return await assemble(
            routing,
            local=inference,
            embedder=inference.embedder,
            database=foundation.database,
            audit=foundation.audit,
            lease=lambda secret, purpose, seconds: vault.lease(
                router, LeaseRequest(secret=secret, purpose=purpose, seconds=seconds)
            ),
            use=vault.use,
            answers=settings.data_dir / "answers.db",
            log=self.log,
        )

    def _report(self, started: asyncio.Future[None]) -> None:
        if not started.cancelled() and (error := started.exception()):
            self.log.error("UAIT's services did not start", exc_info=error)
