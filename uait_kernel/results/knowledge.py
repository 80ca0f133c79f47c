"""Hits, citations, collections, and what an ingest did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, overload

from .decode import decoding, known
from .shown import Bundle, Shown

Json = dict[str, Any]
IngestState = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Place:
    """Where in a document a passage stands; `label` is for people: `page 3`, `lines 10-24`."""

    label: str = ""
    start: int = 0
    end: int = 0
    page: int | None = None
    cell: int | None = None
    line: int | None = None


@dataclass(frozen=True)
class Citation:
    """A numbered pointer from an answer to the passage that supports it."""

    number: int
    path: str
    title: str
    place: Place
    quote: str

    @classmethod
    def of(cls, data: Json) -> Citation:
        """Read a citation from the server's JSON."""
        return cls(**known(cls, data) | {"place": Place(**known(Place, data["place"]))})


@dataclass(frozen=True)
class Hit:
    """One passage that a search found, with the scores that put it there."""

    path: str
    title: str
    place: Place
    text: str
    score: float
    text_score: float | None = None
    dense_score: float | None = None
    document_id: int | None = None
    chunk_id: int | None = None

    @classmethod
    def of(cls, data: Json) -> Hit:
        """Read a hit from the server's JSON."""
        return cls(**known(cls, data) | {"place": Place(**known(Place, data["place"]))})


@dataclass(frozen=True, repr=False)
class Hits(Shown, Sequence[Hit]):
    """What a search found, best first: a sequence of `Hit`."""

    hits: tuple[Hit, ...]
    query: str = ""
    collection: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, data: Json, *, query: str, collection: str) -> Hits:
        """Read a search's answer."""
        with decoding("list of hits"):
            hits = tuple(Hit.of(item) for item in data["hits"])
            return cls(hits, query, collection, float(data.get("seconds", 0.0)))

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __repr__(self) -> str:
        return f"Hits({len(self.hits)} of {self.query!r} in {self.collection!r})"

    @property
    def json(self) -> list[Json]:
        """The hits as plain dicts, ready for `pandas.DataFrame` or a file."""
        return [asdict(hit) for hit in self.hits]

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        from uait_kernel.display.knowledge import hits_bundle

        return hits_bundle(self)


@dataclass(frozen=True)
class UnfinishedFile:
    """A file that is not in its collection: not reached yet, or not readable (`error` says why)."""

    path: str
    error: str | None = None


@dataclass(frozen=True, repr=False)
class CollectionStatus(Shown):
    """A collection in numbers, and what is left to do."""

    name: str
    documents: int = 0
    chunks: int = 0
    embedding_model: str = ""
    sources: tuple[str, ...] = ()
    pending: tuple[UnfinishedFile, ...] = ()
    failed: tuple[UnfinishedFile, ...] = ()
    ingesting: bool = False
    generation: int = 0
    disk_bytes: int = 0

    @classmethod
    def of(cls, data: Json) -> CollectionStatus:
        """Read a collection's status from the server's JSON."""
        with decoding("status of a collection"):
            lists = {
                "sources": tuple(data.get("sources", ())),
                "pending": tuple(_unfinished(item) for item in data.get("pending", ())),
                "failed": tuple(_unfinished(item) for item in data.get("failed", ())),
            }
            return cls(**known(cls, data) | lists)

    def __repr__(self) -> str:
        return (
            f"CollectionStatus({self.name!r}, documents={self.documents}, chunks={self.chunks}, "
            f"pending={len(self.pending)}, failed={len(self.failed)})"
        )

    @property
    def json(self) -> Json:
        """The status as a plain dict."""
        return asdict(self)

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        from uait_kernel.display.knowledge import status_bundle

        return status_bundle(self)


@dataclass(frozen=True, repr=False)
class Collections(Shown, Sequence[CollectionStatus]):
    """All collections, by name: a sequence of `CollectionStatus`."""

    collections: tuple[CollectionStatus, ...]

    @classmethod
    def of(cls, data: Json) -> Collections:
        """Read the list of collections."""
        with decoding("list of collections"):
            return cls(tuple(CollectionStatus.of(item) for item in data["collections"]))

    @overload
    def __getitem__(self, index: int) -> CollectionStatus: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CollectionStatus]: ...
    def __getitem__(self, index: int | slice) -> CollectionStatus | Sequence[CollectionStatus]:
        return self.collections[index]

    def __len__(self) -> int:
        return len(self.collections)

    def __repr__(self) -> str:
        return f"Collections({', '.join(status.name for status in self.collections)})"

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        from uait_kernel.display.knowledge import collections_bundle

        return collections_bundle(self)


@dataclass(frozen=True, repr=False)
class IngestSummary(Shown):
    """What an ingest did so far or in all; `failed` holds each file with its reason."""

    collection: str
    state: IngestState = "running"
    files: int = 0
    reported: int = 0
    latest: str = ""
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: tuple[UnfinishedFile, ...] = ()
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0

    def after(self, event: Json) -> IngestSummary:
        """Return the summary after one more event of the ingest's stream."""
        with decoding("report of an ingest"):
            if event["type"] == "started":
                return replace(self, files=int(event["files"]))
            if event["type"] == "file":
                return self._after_file(event)
            if event["type"] == "done":
                numbers = known(IngestSummary, event)
                numbers.pop("failed", None)  # a count: the files themselves are known already
                return replace(self, **numbers | {"state": "done"})
            return self

    def ended(self, state: IngestState) -> IngestSummary:
        """Return the summary of an ingest that goes no further."""
        return replace(self, state=state)

    def _after_file(self, event: Json) -> IngestSummary:
        path, state = str(event["path"]), str(event["state"])
        counted = replace(self, reported=self.reported + 1, latest=path)
        if state == "failed":
            failure = UnfinishedFile(path, event.get("error") or "no reason was given")
            return replace(counted, failed=(*self.failed, failure))
        if state in ("added", "changed", "unchanged", "removed"):
            return replace(counted, **{state: getattr(self, state) + 1})
        return counted

    def __repr__(self) -> str:
        return (
            f"IngestSummary({self.collection!r}, {self.state}, added={self.added}, "
            f"changed={self.changed}, unchanged={self.unchanged}, removed={self.removed}, "
            f"failed={len(self.failed)})"
        )

    @property
    def json(self) -> Json:
        """The summary as a plain dict."""
        return asdict(self)

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        from uait_kernel.display.knowledge import ingest_bundle

        return ingest_bundle(self)


def _unfinished(data: Json) -> UnfinishedFile:
    return UnfinishedFile(**known(UnfinishedFile, data))
