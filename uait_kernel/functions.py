"""The magics as plain functions: they return what the magics return, and show nothing.

All raise the errors of `errors.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

from .client import DEFAULT_COLLECTION, Client
from .event_stream import EventStream
from .results.answer import Answer, AnswerInProgress
from .results.knowledge import Collections, CollectionStatus, Hits, IngestSummary
from .results.models import Models
from .session import SESSION


def connect(url: str | None = None, token: str | None = None) -> Client:
    """Use this server from now on; without an address, search for one anew.

    Args:
        url: its address, or the link that `jupyter lab` prints.
        token: what opens it; none: the link's, or that of a server of yours on this machine.
    """
    return SESSION.connect(url, token)


def ask(
    question: str,
    *,
    collection: str = DEFAULT_COLLECTION,
    model: str | None = None,
    k: int | None = None,
    max_tokens: int | None = None,
    phrase: bool = True,
) -> Answer:
    """Ask a question of a collection and return the whole answer.

    Args:
        k: passages given to the model.
        max_tokens: longest answer of the model.
        phrase: let the model phrase an answer after the documents' own words.
    """
    progress = AnswerInProgress(question, collection=collection, model=model)
    with SESSION.client() as client:
        events = client.ask(
            question,
            collection,
            model=model,
            k=k,
            max_tokens=max_tokens,
            phrase=None if phrase else False,
        )
        return _whole(events, progress)


def chat(
    prompt: str,
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
) -> Answer:
    """Ask a model alone, without documents, and return the whole answer."""
    progress = AnswerInProgress(prompt, collection=None, model=model)
    messages = [{"role": "user", "content": prompt}]
    with SESSION.client() as client:
        events = client.chat(
            messages, model=model, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        return _whole(events, progress)


def search(
    query: str,
    *,
    collection: str = DEFAULT_COLLECTION,
    k: int | None = None,
    mode: str | None = None,
) -> Hits:
    """Search a collection; `mode` is `hybrid`, `text` or `dense`."""
    with SESSION.client() as client:
        return client.search(query, collection, k=k, mode=mode)


def add(path: str | os.PathLike[str], *, collection: str = DEFAULT_COLLECTION) -> IngestSummary:
    """Add a file or folder to a collection; files that cannot be read are in `.failed`."""
    absolute = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 (a link stays a link)
    return _ingest(absolute, collection)


def resume(*, collection: str = DEFAULT_COLLECTION) -> IngestSummary:
    """Go on with what an interrupted ingest left."""
    return _ingest(None, collection)


def status(collection: str = DEFAULT_COLLECTION) -> CollectionStatus:
    """Tell what a collection holds and what is left to do."""
    with SESSION.client() as client:
        return client.status(collection)


def collections() -> Collections:
    """List all collections."""
    with SESSION.client() as client:
        return client.collections()


def models() -> Models:
    """List the server's models."""
    with SESSION.client() as client:
        return client.models()


def _whole(events: EventStream, progress: AnswerInProgress) -> Answer:
    """Return the answer after its last event."""
    with events:
        for event in events:
            progress.add(event)
    return progress.answer()


def _ingest(path: str | None, collection: str) -> IngestSummary:
    """Return the summary after the last event."""
    summary = IngestSummary(collection)
    with SESSION.client() as client, client.ingest(path, collection) as events:
        for event in events:
            summary = summary.after(event)
    return summary
