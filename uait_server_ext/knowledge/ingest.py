"""One ingest: read files, embed their passages, write whole documents, report what is durable.

::

    plan ─► pending ─► read (a process, ahead) ─► embed ─► one transaction ─► report
                                                              └─► the indexes follow, now and then

A document and the removal of its pending mark are one transaction, which is committed before the
file is reported. So a kill at any moment loses nothing that was reported, and what is left is
pending.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream
from anyio.to_thread import run_sync as in_thread

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.collection import Collection
from uait_server_ext.knowledge.models import FileReport, IngestDone, IngestEvent, IngestStarted
from uait_server_ext.knowledge.plan import Plan
from uait_server_ext.knowledge.reader import Reader
from uait_server_ext.knowledge.reading.chunk import Passage
from uait_server_ext.knowledge.reading.read import Reading
from uait_server_ext.knowledge.store import NewDocument, SourceFile, digest_of

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Embedder, Vectors

# Passages in one call of the embedding model: one or two seconds' work on two cores, after which
# a query or a cancellation has its turn.
EMBED_AT_ONCE = 64
READ_AHEAD = 64
# A transaction waits so long for more small files.
GATHER_SECONDS = 0.5
FOLLOW_SECONDS = 3.0
SAVE_SECONDS = 60.0
# A file modified within this time before it is read may change again under the same time stamp.
RACY_NS = 2_000_000_000

_Read = tuple[SourceFile, Reading | str, float]  # file, what was read or why not, when it began
Emit = Callable[[IngestEvent], Awaitable[None]]


@dataclass(slots=True)
class _Batch:
    """Files that were read, to be written together."""

    read: list[tuple[SourceFile, Reading, float]] = field(default_factory=list)
    unchanged: list[SourceFile] = field(default_factory=list)
    failed: dict[SourceFile, str] = field(default_factory=dict)
    passages: int = 0

    def add(self, file: SourceFile, outcome: Reading | str, began: float) -> None:
        if isinstance(outcome, str):
            self.failed[file] = outcome
        elif outcome.passages is None:
            self.unchanged.append(file)
        else:
            self.read.append((file, outcome, began))
            self.passages += len(outcome.passages)

    @property
    def is_full(self) -> bool:
        files = len(self.read) + len(self.unchanged) + len(self.failed)
        return self.passages >= EMBED_AT_ONCE or files >= READ_AHEAD


class Ingest:
    """Carry out one plan on one collection."""

    def __init__(
        self,
        collection: Collection,
        plan: Plan,
        *,
        reader: Reader,
        embedder: Embedder,
        clock: Callable[[], datetime],
        emit: Emit,
    ) -> None:
        self._collection = collection
        self._store = collection.store
        self._plan = plan
        self._reader = reader
        self._embedder = embedder
        self._clock = clock
        self._emit = emit
        self._done = IngestDone(collection=collection.name)
        self._followed = self._saved = time.monotonic()

    async def run(self) -> None:
        """Do it all; cancelling leaves the rest pending and the collection whole."""
        began = time.monotonic()
        plan = self._plan
        await in_thread(self._store.take_on, plan.sources, plan.todo, self._now())
        await self._emit(IngestStarted(collection=self._collection.name, files=plan.files))
        try:
            await self._settle_what_needs_no_reading()
            async with self._read_ahead() as batches:
                async for batch in batches:
                    await self._write(batch)
                    await self._let_indexes_follow()
        finally:
            with anyio.CancelScope(shield=True):
                await in_thread(self._collection.follow)
        await in_thread(self._collection.save)
        self._done.seconds = time.monotonic() - began
        await self._emit(self._done)

    async def _settle_what_needs_no_reading(self) -> None:
        plan = self._plan
        if plan.removed:
            await in_thread(self._store.remove, list(plan.removed))
        for shown in plan.removed.values():
            await self._report(FileReport(path=shown, state="removed"))
        settled = [file.path for file in plan.unchanged]
        settled += [source.path for source in plan.vanished]
        await in_thread(self._store.forget, settled)
        for source in plan.vanished:
            error = "The file is no longer there."
            await self._report(FileReport(path=source.shown, state="failed", error=error))
        for file in plan.unchanged:
            await self._report(FileReport(path=file.shown, state="unchanged"))
        await self._settle([], plan.failed)

    async def _write(self, batch: _Batch) -> None:
        await self._settle(batch.unchanged, batch.failed)
        if not batch.read:
            return
        texts = await in_thread(_texts, batch)
        vectors = await self._embed(texts)
        documents = await in_thread(_documents, batch, vectors)
        was_there = await in_thread(self._store.write, documents, self._now())
        for (file, _, began), document, earlier in zip(
            batch.read, documents, was_there, strict=True
        ):
            await self._report(
                FileReport(
                    path=file.shown,
                    state="changed" if earlier else "added",
                    chunks=len(document.passages),
                    seconds=round(time.monotonic() - began, 3),
                )
            )

    async def _embed(self, texts: Mapping[str, str]) -> dict[str, Vectors]:
        """Return vectors by digest; texts that the collection holds already cost nothing."""
        vectors = await in_thread(self._store.vectors_by_digest, list(texts))
        missing = [digest for digest in texts if digest not in vectors]
        for start in range(0, len(missing), EMBED_AT_ONCE):
            part = missing[start : start + EMBED_AT_ONCE]
            fresh = await self._embedder.embed([texts[d] for d in part], purpose="ingest")
            vectors.update(zip(part, fresh, strict=True))
            self._done.embedded += len(part)
        return vectors

    async def _settle(self, unchanged: Sequence[SourceFile], failed: dict[SourceFile, str]) -> None:
        if not unchanged and not failed:
            return
        kept = " The version that was added before is kept."
        failed = {
            file: error + kept if file.path in self._plan.known else error
            for file, error in failed.items()
        }
        await in_thread(self._store.settle, unchanged, failed)
        for file in unchanged:
            await self._report(FileReport(path=file.shown, state="unchanged"))
        for file, error in failed.items():
            await self._report(FileReport(path=file.shown, state="failed", error=error))

    async def _report(self, report: FileReport) -> None:
        counted = getattr(self._done, report.state)
        setattr(self._done, report.state, counted + 1)
        self._done.chunks += report.chunks
        await self._emit(report)

    async def _let_indexes_follow(self) -> None:
        now = time.monotonic()
        if now - self._followed > FOLLOW_SECONDS:
            await in_thread(self._collection.follow)
            self._followed = time.monotonic()
        if now - self._saved > SAVE_SECONDS:
            await in_thread(self._collection.save)
            self._saved = time.monotonic()

    @asynccontextmanager
    async def _read_ahead(self) -> AsyncIterator[AsyncIterator[_Batch]]:
        """Read files in a task of its own while earlier ones are embedded."""
        send, receive = anyio.create_memory_object_stream[_Read](READ_AHEAD)

        async def read_all() -> None:
            async with send:
                for file in self._plan.todo:
                    began = time.monotonic()
                    await send.send((*await self._read(file), began))

        task = asyncio.create_task(read_all())
        try:
            async with receive:
                yield _batches(receive)
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})
            await self._reader.close()

    async def _read(self, file: SourceFile) -> tuple[SourceFile, Reading | str]:
        known = self._plan.known.get(file.path)
        if self._clock().timestamp() * 1e9 - file.modified_ns < RACY_NS:
            file = replace(file, modified_ns=0)
        try:
            return file, await self._reader.read(Path(file.path), known.sha256 if known else None)
        except UnsupportedDocument as error:
            return file, error.detail

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds")


async def _batches(receive: MemoryObjectReceiveStream[_Read]) -> AsyncIterator[_Batch]:
    """Gather what is read until there is enough for one call of the embedding model."""
    async for first in receive:
        batch = _Batch()
        batch.add(*first)
        with anyio.move_on_after(GATHER_SECONDS):
            while not batch.is_full:
                try:
                    batch.add(*await receive.receive())
                except anyio.EndOfStream:
                    break
        yield batch


def _texts(batch: _Batch) -> dict[str, str]:
    """Return the texts to embed by their digest."""
    texts = (
        indexed_text(reading.title, passage)
        for _, reading, _ in batch.read
        for passage in reading.passages or ()
    )
    return {digest_of(text): text for text in texts}


def _documents(batch: _Batch, vectors: Mapping[str, Vectors]) -> list[NewDocument]:
    """Put together what is written of each file."""
    documents = []
    for file, reading, _ in batch.read:
        passages = reading.passages or []
        indexed = [indexed_text(reading.title, passage) for passage in passages]
        documents.append(
            NewDocument(
                file=file,
                sha256=reading.sha256,
                title=reading.title,
                media_type=reading.media_type,
                passages=passages,
                indexed=indexed,
                vectors=np.stack([vectors[digest_of(text)] for text in indexed]),
            )
        )
    return documents


def indexed_text(title: str, passage: Passage) -> str:
    """Return what is embedded and searched of a passage: the headings it stands under come first.

    Those that the passage itself says are left out.
    """
    above = [part for part in (title, *passage.headings) if part and part not in passage.text]
    return "\n".join([*dict.fromkeys(above), passage.text])
