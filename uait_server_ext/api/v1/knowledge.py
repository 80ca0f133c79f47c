"""Operations on collections: ingest, search, ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field

from uait_server_ext.api.callers import caller_of
from uait_server_ext.api.operation import Call, operation
from uait_server_ext.knowledge.models import (
    COLLECTION_PATTERN,
    AskEvent,
    AskRequest,
    CollectionList,
    CollectionStatus,
    DocumentList,
    IngestEvent,
    IngestRequest,
    SearchRequest,
    SearchResponse,
)

CollectionName = Annotated[
    str,
    Field(
        pattern=COLLECTION_PATTERN,
        description="Lower-case letters, digits, `.`, `_`, `-`; starts with a letter or digit.",
    ),
]


@operation("GET", "/collections", permission="knowledge:read", rate="read", tool=True)
async def list_collections(call: Call) -> CollectionList:
    """List all collections with their numbers."""
    knowledge = await call.services.knowledge()
    return CollectionList(collections=await knowledge.collections())


@operation("GET", "/collections/{collection}", permission="knowledge:read", rate="read", tool=True)
async def collection_status(call: Call, collection: CollectionName) -> CollectionStatus:
    """Tell what a collection holds and what is left to do."""
    knowledge = await call.services.knowledge()
    return await knowledge.status(collection)


@operation("DELETE", "/collections/{collection}", permission="knowledge:write", rate="write")
async def delete_collection(call: Call, collection: CollectionName) -> None:
    """Delete a collection with its documents' text and indexes; the files stay."""
    knowledge = await call.services.knowledge()
    await knowledge.delete(collection)


@operation(
    "GET",
    "/collections/{collection}/documents",
    permission="knowledge:read",
    rate="read",
    tool=True,
)
async def list_documents(
    call: Call,
    collection: CollectionName,
    offset: Annotated[int, Field(ge=0)] = 0,
    limit: Annotated[int, Field(ge=1, le=1000)] = 100,
) -> DocumentList:
    """List documents of a collection by path."""
    knowledge = await call.services.knowledge()
    return await knowledge.documents(collection, offset=offset, limit=limit)


@operation("POST", "/collections/{collection}/ingest", permission="knowledge:write", rate="ingest")
async def ingest(
    call: Call, collection: CollectionName, body: IngestRequest
) -> AsyncIterator[IngestEvent]:
    """Add a file or folder, or go on with what is left; streams a report for each file.

    A reported file is durable. Disconnecting stops after the current file; the rest is `pending`
    in the collection's status, and an ingest without a path goes on with it.
    """
    knowledge = await call.services.knowledge()
    async for event in knowledge.ingest(collection, body.path):
        yield event


@operation(
    "POST", "/collections/{collection}/search", permission="knowledge:read", rate="read", tool=True
)
async def search(call: Call, collection: CollectionName, body: SearchRequest) -> SearchResponse:
    """Search a collection by meaning and by words; hits carry the scores that put them there."""
    knowledge = await call.services.knowledge()
    return await knowledge.search(collection, body)


@operation("POST", "/collections/{collection}/ask", permission="knowledge:read", rate="inference")
async def ask(call: Call, collection: CollectionName, body: AskRequest) -> AsyncIterator[AskEvent]:
    """Answer a question from a collection with numbered citations, or decline.

    The evidence comes first: whether the documents answer the question, the best supporting
    sentence, the citations. Then the model's phrasing is streamed. Disconnecting cancels it.
    """
    knowledge = await call.services.knowledge()
    router = await call.services.router()
    chat = router.bound(caller_of(call, collection=collection))
    async for event in knowledge.ask(collection, body, chat=chat):
        yield event
