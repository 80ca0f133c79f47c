"""The knowledge base: what the API, the panel and the command line use of this package."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
import duckdb
from anyio.to_thread import run_sync as in_thread

from uait_server_ext.errors import (
    CollectionNotFound,
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from uait_server_ext.knowledge.answer import Answerer
from uait_server_ext.knowledge.collection import ROWS, Collection
from uait_server_ext.knowledge.ingest import Ingest
from uait_server_ext.knowledge.models import (
    COLLECTION_PATTERN,
    AskEvent,
    AskRequest,
    CollectionStatus,
    DocumentList,
    Hit,
    IngestDone,
    IngestEvent,
    SearchMode,
    SearchRequest,
    SearchResponse,
)
from uait_server_ext.knowledge.plan import Plan, Planner
from uait_server_ext.knowledge.reader import SECONDS_EACH, Reader
from uait_server_ext.knowledge.retrieve import hits, rank

if TYPE_CHECKING:
    from uait_server_ext.inference.models import ChatModel, Embedder

MAX_FILE_BYTES = 50 * 1024 * 1024
TRASH = ".deleted-"
EVENTS_AHEAD = 64

ServiceState = Literal["ready", "starting", "stopped", "failed"]


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


class KnowledgeBase:
    """All collections under one folder.

    Args:
        root: folder of the collections; one process at a time may use it.
        embedder: embeds passages and questions; recorded with each collection.
        chat: phrases answers.
        root_dir: where relative paths to ingest start.
        allowed_roots: folders from which documents may be added.
        max_file_bytes: larger files are reported and not read.
        seconds_each_file: a file that takes longer to read is given up.
        clock: the time that goes into the rows.
        log: where rebuilt indexes are noted.

    """

    def __init__(
        self,
        root: Path,
        *,
        embedder: Embedder,
        chat: ChatModel,
        root_dir: Path,
        allowed_roots: Sequence[Path],
        max_file_bytes: int = MAX_FILE_BYTES,
        seconds_each_file: float = SECONDS_EACH,
        clock: Callable[[], datetime] = utc_now,
        log: logging.Logger | None = None,
    ) -> None:
        self._root = root
        self._embedder = embedder
        self._answerer = Answerer(embedder, chat)
        self._root_dir = root_dir.resolve()
        self._allowed_roots = tuple(dict.fromkeys(folder.resolve() for folder in allowed_roots))
        self._planner = Planner(is_allowed=self._is_allowed, max_file_bytes=max_file_bytes)
        self._max_file_bytes = max_file_bytes
        self._seconds_each_file = seconds_each_file
        self._clock = clock
        self._log = log or logging.getLogger(__name__)
        self._state: ServiceState = "stopped"
        self._opening = asyncio.Lock()
        self._open: dict[str, Collection] = {}
        self._ingests: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Make the folder ready; collections are opened when they are first used."""
        await in_thread(self._prepare)
        self._state = "ready"

    async def stop(self) -> None:
        """Cancel what is being ingested (the rest stays pending), then save and close."""
        self._state = "stopped"
        tasks = list(self._ingests.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        async with self._opening:
            while self._open:
                _, collection = self._open.popitem()
                await in_thread(collection.close)

    def state(self) -> list[tuple[str, ServiceState, str | None]]:
        """Return (name, state, detail) for the health report."""
        busy = sorted(self._ingests)
        return [("knowledge", self._state, f"ingesting {', '.join(busy)}" if busy else None)]

    async def collections(self) -> list[CollectionStatus]:
        """Return the status of every collection, by name.

        Raises:
            Conflict: one is open in another process.

        """
        found = []
        for name in await in_thread(self._names):
            with suppress(CollectionNotFound):  # deleted since
                found.append(await self.status(name))
        return found

    async def status(self, name: str) -> CollectionStatus:
        """Return a collection in numbers and what is left to do.

        Raises:
            CollectionNotFound: no collection has that name; the message says which there are.

        """
        collection = await self._collection(name)
        return await in_thread(self._status, collection)

    async def documents(self, name: str, offset: int = 0, limit: int = 100) -> DocumentList:
        """Return a page of a collection's documents, by path.

        Raises:
            CollectionNotFound: no collection has that name.

        """
        collection = await self._collection(name)
        documents = await in_thread(collection.store.documents, offset, limit)
        total, _, _ = await in_thread(collection.store.counts)
        return DocumentList(documents=documents, total=total)

    async def delete(self, name: str) -> None:
        """Delete a collection; the files that were added stay where they are.

        Raises:
            CollectionNotFound: no collection has that name.
            Conflict: it is being ingested into.

        """
        collection = await self._collection(name)
        async with self._opening:
            self._refuse_while_ingesting(name)
            self._open.pop(name, None)
            await in_thread(self._discard, collection)

    async def ingest(self, name: str, path: str | None) -> AsyncGenerator[IngestEvent, None]:
        """Add a file or folder, or with no path go on with what is left; yield what becomes of it.

        A file that is reported added, changed or removed is durable. Closing the iterator stops
        the ingest; the rest stays pending.

        Raises:
            InvalidInput: the folder holds no documents, or there is nothing to go on with.
            NotFound: no such file; CollectionNotFound: no path and no such collection.
            PermissionDenied: the path is not below an allowed folder.
            Conflict: the collection is being ingested into, or made with another embedding model.

        """
        self._check_name(name)
        source = await in_thread(self._source, path) if path is not None else None
        self._refuse_while_ingesting(name)
        send, receive = anyio.create_memory_object_stream[IngestEvent](EVENTS_AHEAD)

        async def run() -> None:
            async with send:
                collection, plan = await self._plan(name, source)
                reader = Reader(
                    max_file_bytes=self._max_file_bytes, seconds_each=self._seconds_each_file
                )
                await Ingest(
                    collection,
                    plan,
                    reader=reader,
                    embedder=self._embedder,
                    clock=self._clock,
                    emit=send.send,
                ).run()

        task = self._ingests[name] = asyncio.create_task(run())
        try:
            async with receive:
                async for event in receive:
                    if isinstance(event, IngestDone):
                        # Who hears that it is done may begin the next one at once.
                        await task
                        del self._ingests[name]
                    yield event
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})
            if self._ingests.get(name) is task:
                del self._ingests[name]

    async def search(self, name: str, request: SearchRequest) -> SearchResponse:
        """Search a collection.

        Raises:
            CollectionNotFound: no collection has that name.
            Conflict: the collection was made with another embedding model.

        """
        began = time.monotonic()
        found = await self._search(name, request.query, request.k, request.mode)
        return SearchResponse(hits=found, seconds=time.monotonic() - began)

    async def ask(
        self, name: str, request: AskRequest, *, chat: ChatModel | None = None
    ) -> AsyncGenerator[AskEvent, None]:
        """Answer a question from a collection, or decline: evidence, then phrasing, then all.

        Closing the iterator cancels the phrasing. ``chat`` phrases in the place of the usual model.

        Raises:
            CollectionNotFound: no collection has that name.
            ContextTooLong: the question is longer than a model can take beside its passages.
            ModelNotFound, ModelUnavailable: the chat model cannot be used.

        """
        collection = await self._collection(name)
        self._check_model(collection)
        async with aclosing(self._answerer.answer(collection, request, chat)) as events:
            try:
                async for event in events:
                    yield event
            except duckdb.ConnectionException:
                raise self._unknown(name) from None  # deleted in the middle

    async def _search(self, name: str, query: str, k: int, mode: SearchMode) -> list[Hit]:
        collection = await self._collection(name)
        vector = None
        if mode != "text":
            self._check_model(collection)
            vector = (await self._embedder.embed([query], purpose="query"))[0]

        def find() -> list[Hit]:
            return hits(collection, rank(collection, query, vector, limit=k, mode=mode))

        try:
            return await in_thread(find)
        except duckdb.ConnectionException:
            raise self._unknown(name) from None  # deleted in the middle

    async def _plan(self, name: str, source: Path | None) -> tuple[Collection, Plan]:
        """Plan before the collection is created, so that a refused ingest leaves nothing."""
        exists = await in_thread((self._root / name / ROWS).is_file)
        if source is None:
            collection = await self._collection(name)
            self._check_model(collection)
            return collection, await in_thread(self._planner.to_resume, collection.store)
        if exists:
            collection = await self._collection(name)
            self._check_model(collection)
            return collection, await in_thread(self._planner.for_path, source, collection.store)
        plan = await in_thread(self._planner.for_path, source, None)
        return await self._collection(name, create=True), plan

    async def _collection(self, name: str, *, create: bool = False) -> Collection:
        if collection := self._open.get(name):
            return collection
        self._check_name(name)
        async with self._opening:
            if collection := self._open.get(name):
                return collection
            if self._state == "stopped":
                raise Unavailable("The knowledge base has stopped: restart the server.")
            if not create and not await in_thread((self._root / name / ROWS).is_file):
                raise self._unknown(name)
            collection = await in_thread(
                lambda: Collection(
                    self._root / name,
                    model=self._embedder.id,
                    dimension=self._embedder.dimension,
                    log=self._log,
                )
            )
            self._open[name] = collection
            return collection

    def _status(self, collection: Collection) -> CollectionStatus:
        documents, chunks, generation = collection.store.counts()
        pending, failed = collection.store.open_files()
        return CollectionStatus(
            name=collection.name,
            documents=documents,
            chunks=chunks,
            embedding_model=collection.store.model,
            sources=[source.path for source in collection.store.sources()],
            pending=pending,
            failed=failed,
            ingesting=collection.name in self._ingests,
            generation=generation,
            disk_bytes=collection.disk_bytes(),
        )

    def _source(self, path: str) -> Path:
        """Return the absolute path, where it is there and may be added."""
        given = (self._root_dir / Path(path).expanduser()).absolute()
        try:
            source = given.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            raise NotFound(
                f"There is no file or folder {given}: relative paths start at {self._root_dir}."
            ) from None
        if not self._is_allowed(source):
            folders = ", ".join(str(folder) for folder in self._allowed_roots)
            raise PermissionDenied(
                f"{source} is not in a folder that documents may be added from ({folders}): move "
                "it there, or add its folder to UaitApp.knowledge_roots."
            )
        return source

    def _is_allowed(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._allowed_roots)

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(COLLECTION_PATTERN, name):
            raise InvalidInput(
                f"`{name}` cannot be a collection's name: use lower-case letters, digits, `.`, "
                "`_` and `-`, at most 63, starting with a letter or digit."
            )

    def _check_model(self, collection: Collection) -> None:
        store = collection.store
        if (store.model, store.dimension) != (self._embedder.id, self._embedder.dimension):
            raise Conflict(
                f"The collection `{collection.name}` was made with the embedding model "
                f"{store.model}, the server runs {self._embedder.id}: set "
                f"UaitApp.embedding_model to {store.model}, or delete the collection and add its "
                "sources again."
            )

    def _refuse_while_ingesting(self, name: str) -> None:
        if name in self._ingests:
            raise Conflict(
                f"Documents are being added to `{name}` already: wait for it, or stop it first."
            )

    def _unknown(self, name: str) -> CollectionNotFound:
        known = ", ".join(f"`{other}`" for other in self._names())
        return CollectionNotFound(
            f"There is no collection `{name}`: "
            + (f"there are {known}." if known else "add documents to create one.")
        )

    def _names(self) -> list[str]:
        return sorted(rows.parent.name for rows in self._root.glob(f"*/{ROWS}") if _shown(rows))

    def _prepare(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for rest in self._root.glob(f"{TRASH}*"):
            shutil.rmtree(rest, ignore_errors=True)

    def _discard(self, collection: Collection) -> None:
        """Take the folder away in one step, then empty it."""
        collection.store.close()
        away = self._root / f"{TRASH}{secrets.token_hex(4)}"
        collection.folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def _shown(rows: Path) -> bool:
    return not rows.parent.name.startswith(".")
