"""The operations of UAIT's HTTP API as methods: one class, the standard library, no state.

Answers come back as the objects of `results/`; running operations (`chat`, `ask`, `ingest`) as an
`EventStream`. Options that are None are left out, so that the server's own defaults hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .endpoint import Server, Token, parse_address
from .errors import UsageMistake
from .event_stream import EventStream, Json
from .results.knowledge import Collections, CollectionStatus, Hits
from .results.models import Models
from .transport import ANSWER_SECONDS, Transport

DEFAULT_COLLECTION = "default"


class Client:
    """Speaks to one UAIT server.

    Args:
        url: the server's address; the link that `jupyter lab` prints will do, token and all.
        token: what opens it; none: the token of the link, if it has one.
        timeout: seconds for an answer that is not a stream.

    Every method raises the errors of `errors.py`.
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = ANSWER_SECONDS
    ) -> None:
        endpoint, linked = parse_address(url)
        chosen = linked if token is None else Token(token)
        self._http = Transport(Server(endpoint, chosen, "given address"), timeout=timeout)

    @classmethod
    def of(cls, server: Server, *, timeout: float = ANSWER_SECONDS) -> Client:
        """Return a client of a server that discovery found."""
        client = cls.__new__(cls)
        client._http = Transport(server, timeout=timeout)
        return client

    @property
    def url(self) -> str:
        """The server's base address, without any credential."""
        return self._http.server.url

    def __repr__(self) -> str:
        return f"<UAIT client of {self._http.server}>"

    def health(self) -> Json:
        """Tell whether the server is ready, its version and the state of each service."""
        return self._http.call("GET", "health")

    def models(self) -> Models:
        """List the catalogue's models with their state on the server's machine."""
        return Models.of(self._http.call("GET", "models"))

    def chat(
        self,
        messages: Sequence[Json],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> EventStream:
        """Stream a completion of messages, each `{"role": …, "content": …}`."""
        body = _given(
            messages=list(messages),
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        return self._http.stream("POST", "chat", body=body)

    def collections(self) -> Collections:
        """List all collections with their numbers."""
        return Collections.of(self._http.call("GET", "collections"))

    def status(self, collection: str = DEFAULT_COLLECTION) -> CollectionStatus:
        """Tell what a collection holds and what is left to do."""
        return CollectionStatus.of(self._http.call("GET", "collections", _name(collection)))

    def delete(self, collection: str) -> None:
        """Delete a collection with its documents' text and indexes; the files stay."""
        self._http.call("DELETE", "collections", _name(collection))

    def ingest(self, path: str | None = None, collection: str = DEFAULT_COLLECTION) -> EventStream:
        """Add a file or folder on the server, or go on with what is left; stream the reports."""
        body = _given(path=path)
        return self._http.stream("POST", "collections", _name(collection), "ingest", body=body)

    def search(
        self,
        query: str,
        collection: str = DEFAULT_COLLECTION,
        *,
        k: int | None = None,
        mode: str | None = None,
    ) -> Hits:
        """Search a collection by meaning and by words."""
        body = _given(query=query, k=k, mode=mode)
        answer = self._http.call("POST", "collections", _name(collection), "search", body=body)
        return Hits.of(answer, query=query, collection=collection)

    def ask(
        self,
        question: str,
        collection: str = DEFAULT_COLLECTION,
        *,
        model: str | None = None,
        k: int | None = None,
        max_tokens: int | None = None,
        phrase: bool | None = None,
    ) -> EventStream:
        """Answer a question from a collection: evidence first, then the model's phrasing."""
        body = _given(question=question, model=model, k=k, max_tokens=max_tokens, phrase=phrase)
        return self._http.stream("POST", "collections", _name(collection), "ask", body=body)


def _given(**options: Any) -> Json:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _name(collection: str) -> str:
    """Return a collection's name, which must be able to stand in a path."""
    if not collection.strip("."):
        raise UsageMistake("A collection needs a name, such as `default`.")
    return collection
