"""A knowledge base in a temporary folder, with small stand-ins for the models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.unit.knowledge.fakes import HashEmbedder, SayingChat
from uait_server_ext.knowledge.models import FileReport, IngestDone, IngestEvent
from uait_server_ext.knowledge.service import KnowledgeBase

# How long an example takes says nothing on a machine that does other work too.
settings.register_profile("knowledge", deadline=None)
settings.load_profile("knowledge")

OpenBase = Callable[..., AbstractAsyncContextManager[KnowledgeBase]]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Return the empty folder that documents are put in."""
    folder = tmp_path / "documents"
    folder.mkdir()
    return folder


@pytest.fixture
def embedder() -> HashEmbedder:
    """Return an embedder that hashes words."""
    return HashEmbedder()


@pytest.fixture
def chat() -> SayingChat:
    """Return a chat model that says `It is so.`."""
    return SayingChat()


@pytest.fixture
def open_base(tmp_path: Path, embedder: HashEmbedder, chat: SayingChat) -> OpenBase:
    """Return how to open the knowledge base of this test; opening again finds what was stored."""

    @asynccontextmanager
    async def open_it(**changes: Any) -> AsyncIterator[KnowledgeBase]:
        settings: dict[str, Any] = {
            "embedder": embedder,
            "chat": chat,
            "root_dir": tmp_path,
            "allowed_roots": [tmp_path],
        }
        base = KnowledgeBase(tmp_path / "knowledge", **settings | changes)
        await base.start()
        try:
            yield base
        finally:
            await base.stop()

    return open_it


class Ingested:
    """What an ingest reported."""

    def __init__(self, events: list[IngestEvent]) -> None:
        self.events = events
        self.files = {event.path: event for event in events if isinstance(event, FileReport)}
        self.states = {path: event.state for path, event in self.files.items()}
        self.errors = {path: event.error for path, event in self.files.items() if event.error}

    @property
    def done(self) -> IngestDone:
        """The last event."""
        assert isinstance(self.events[-1], IngestDone)
        return self.events[-1]


Ingesting = Callable[..., Coroutine[None, None, Ingested]]


@pytest.fixture
def ingest() -> Ingesting:
    """Return how to ingest to the end and look at the reports."""

    async def run(base: KnowledgeBase, path: Path | str | None, name: str = "default") -> Ingested:
        given = None if path is None else str(path)
        return Ingested([event async for event in base.ingest(name, given)])

    return run
