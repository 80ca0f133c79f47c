"""The words of the knowledge base as types: collections, documents, hits, citations, events."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from uait_server_ext.inference.models import DEFAULT_MODEL, Usage
from uait_server_ext.schema import Schema

COLLECTION_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
DEFAULT_COLLECTION = "default"

SearchMode = Literal["hybrid", "text", "dense"]
FileState = Literal["added", "changed", "unchanged", "removed", "failed"]


class Place(Schema):
    """Where in a document a passage stands: character span of its text, and the same for people."""

    start: int = Field(description="First character of the passage in the document's text.")
    end: int = Field(description="One past its last character.")
    label: str = Field(description="For people: `page 3`, `cell 5`, `lines 10-24`, `§ Install`.")
    page: int | None = None
    cell: int | None = None
    line: int | None = Field(None, description="First line, counted from 1.")


class Hit(Schema):
    """One passage that retrieval found, with the scores that put it there."""

    document_id: int
    chunk_id: int
    path: str
    title: str
    place: Place
    text: str
    score: float = Field(description="Fused score in [0, 1]; the order of the list.")
    text_score: float | None = Field(
        None, description="BM25; null where full text did not find it."
    )
    dense_score: float | None = Field(None, description="Cosine similarity to the query.")


class Citation(Schema):
    """A numbered pointer from an answer to the passage that supports it."""

    number: int
    path: str
    title: str
    place: Place
    quote: str


class Answer(Schema):
    """An answer with its evidence."""

    question: str
    collection: str
    declined: bool = Field(description="True when the documents hold nothing relevant.")
    text: str = Field(
        description="What to show: the supporting sentence, then the model's phrasing."
    )
    extract: str | None = Field(None, description="Best supporting sentence, word for word.")
    phrasing: str | None = Field(None, description="The model's own words, not checked.")
    citations: list[Citation]
    model: str | None = None
    backend: str | None = None
    usage: Usage
    seconds: float
    first_token_seconds: float | None = None


class SearchRequest(Schema):
    """A search in one collection."""

    model_config = ConfigDict(extra="forbid")
    query: str = Field(min_length=1, max_length=8_000)
    k: int = Field(8, ge=1, le=100)
    mode: SearchMode = "hybrid"


class SearchResponse(Schema):
    """Hits, best first."""

    hits: list[Hit]
    seconds: float


class AskRequest(Schema):
    """A question to one collection."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(min_length=1, max_length=200_000)
    model: str = DEFAULT_MODEL
    k: int = Field(4, ge=1, le=20, description="Passages cited; the model reads what has room.")
    max_tokens: int = Field(120, ge=1, le=4_096)
    phrase: bool = Field(True, description="Let the model phrase an answer after the extract.")


class EvidenceEvent(Schema):
    """What retrieval found, sent before the first token."""

    type: Literal["evidence"] = "evidence"
    declined: bool
    extract: str | None
    citations: list[Citation]


class AnswerDelta(Schema):
    """The next piece of the model's phrasing."""

    type: Literal["delta"] = "delta"
    text: str


class AnswerDone(Schema):
    """The last event: the whole answer."""

    type: Literal["done"] = "done"
    answer: Answer


AskEvent = Annotated[EvidenceEvent | AnswerDelta | AnswerDone, Field(discriminator="type")]


class IngestRequest(Schema):
    """Add a file or a folder to a collection, which is created if it is not there."""

    model_config = ConfigDict(extra="forbid")
    path: str | None = Field(
        None,
        description="File or folder on the server; relative paths start at the server's root. "
        "Null goes on with what an interrupted ingest left.",
    )


class IngestStarted(Schema):
    """How much there is to do."""

    type: Literal["started"] = "started"
    collection: str
    files: int


class FileReport(Schema):
    """What became of one file. `added`, `changed` and `removed` are sent after the commit."""

    type: Literal["file"] = "file"
    path: str
    state: FileState
    chunks: int = 0
    seconds: float = 0.0
    error: str | None = Field(None, description="Of a failed file: what happened, what to do.")


class IngestDone(Schema):
    """The last event: the count of each state."""

    type: Literal["done"] = "done"
    collection: str
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0
    chunks: int = Field(0, description="Chunks written by this ingest.")
    embedded: int = Field(0, description="Passages sent to the embedding model.")
    seconds: float = 0.0


IngestEvent = Annotated[IngestStarted | FileReport | IngestDone, Field(discriminator="type")]


class PendingFile(Schema):
    """A file that an ingest took on and has not finished, or could not read."""

    path: str
    error: str | None = None


class CollectionStatus(Schema):
    """A collection in numbers, and what is left to do."""

    name: str
    documents: int
    chunks: int
    embedding_model: str
    sources: list[str] = Field(description="Folders and files that were added.")
    pending: list[PendingFile] = Field(description="Taken on but not ingested yet: resume goes on.")
    failed: list[PendingFile] = Field(description="Could not be read at the last try.")
    ingesting: bool
    generation: int = Field(description="Grows by one with each committed document.")
    disk_bytes: int


class CollectionList(Schema):
    """All collections, by name."""

    collections: list[CollectionStatus]


class DocumentInfo(Schema):
    """One document of a collection."""

    id: int
    path: str
    title: str
    media_type: str
    size_bytes: int
    chunks: int
    ingested_at: str = Field(description="UTC, ISO 8601.")


class DocumentList(Schema):
    """Documents of one collection, by path."""

    documents: list[DocumentInfo]
    total: int
