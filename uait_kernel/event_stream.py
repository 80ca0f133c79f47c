"""The events of a running operation, read from its open connection."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, cast

from .endpoint import Server
from .errors import StreamBroken, UnexpectedAnswer, from_problem
from .sse import EventParser

Json = dict[str, Any]

PIECE_BYTES = 1 << 16


class EventStream:
    """The events of one running operation; closing it disconnects, which cancels the operation.

    Iterate to get each event as a dict with its `type`. The stream ends after `done`.
    """

    def __init__(
        self,
        server: Server,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        self._server = server
        self._connection = connection
        self._response = response
        self._events = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Json]:
        return self._events

    def close(self) -> None:
        """Disconnect; the server then cancels what it still does for this stream."""
        disconnect(self._connection, self._response)

    def _read(self) -> Iterator[Json]:
        """Yield events until `done`.

        Raises:
            ServerError: the server sent an `error` event.
            StreamBroken: the connection ended, or went silent, before `done`.
            UnexpectedAnswer: what comes are not UAIT's events.
        """
        parser = EventParser()
        try:
            while True:
                for event in self._parse(parser, self._piece()):
                    yield event
                    if event["type"] == "done":
                        return
        finally:
            self.close()

    def _piece(self) -> bytes:
        """Return the next bytes of the stream."""
        try:
            piece = self._response.read1(PIECE_BYTES)
        except TimeoutError as error:
            raise StreamBroken(
                f"{self._server} went silent in the middle of an answer. Try again."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken() from error
        if not piece:
            raise self._broken()
        return piece

    def _broken(self) -> StreamBroken:
        return StreamBroken(
            f"{self._server} closed the connection in the middle of an answer. "
            "See whether the server still runs, then try again."
        )

    def _parse(self, parser: EventParser, piece: bytes) -> Iterator[Json]:
        """Yield the events that a piece completes; an `error` event is raised."""
        try:
            for raw in parser.feed(piece):
                data = read_object(raw.data)
                if raw.name == "error":
                    raise from_problem(data)
                yield {"type": raw.name, **data}
        except ValueError as error:
            raise UnexpectedAnswer(
                f"{self._server} sent something in its stream that is no event of UAIT's. "
                "Is the server of the same version as this package?"
            ) from error


def read_object(content: str | bytes) -> Json:
    """Return a JSON object whose strings can be shown and sent on: no half of a surrogate pair.

    Raises:
        ValueError: it is no JSON, or no object.
    """
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    escape = "\\u" if isinstance(content, str) else b"\\u"
    if escape in content:  # type: ignore[operator]
        whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        return cast(Json, json.loads(whole))
    return value


def disconnect(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
    """Close both ends now: the response holds the socket open after the connection is closed."""
    response.close()
    connection.close()
