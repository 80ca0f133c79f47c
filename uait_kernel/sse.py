"""Server-sent events (WHATWG HTML, section 9.2), read from bytes that come in any pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LARGEST_EVENT = 32 << 20


class EventTooLarge(ValueError):
    """One event has more bytes than any that UAIT sends."""


@dataclass(frozen=True)
class ServerEvent:
    """One event: its name (`message` where the server gave none) and its data."""

    name: str
    data: str


class EventParser:
    """Turn pieces of a byte stream into events; feed it, and take what is complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._scanned = 0  # of the buffer, known to hold no line end
        self._at_start = True
        self._after_return = False
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """Take the next bytes and return the events that they complete.

        Raises:
            EventTooLarge: the stream is not one of ours.
        """
        self._buffer += piece
        if self._at_start:
            if len(self._buffer) < 3 and BYTE_ORDER_MARK.startswith(self._buffer):
                return []  # may become a byte order mark
            self._buffer = self._buffer.removeprefix(BYTE_ORDER_MARK)
            self._at_start = False
        events = [event for line in self._lines() if (event := self._line(line))]
        if self._size + len(self._buffer) > LARGEST_EVENT:
            raise EventTooLarge
        return events

    def _lines(self) -> Iterator[str]:
        """Yield complete lines; they end with LF, CR or CRLF, also when a piece splits the CRLF."""
        start = 0
        buffer = self._buffer
        if self._after_return and buffer:
            start = int(buffer[:1] == b"\n")
            self._after_return = False
        position = max(start, self._scanned)
        while (end := _line_end(buffer, position)) >= 0:
            yield buffer[start:end].decode("utf-8", "replace")
            start = end + 1
            if buffer[end : end + 1] == b"\r":
                if start == len(buffer):
                    self._after_return = True
                elif buffer[start : start + 1] == b"\n":
                    start += 1
            position = start
        self._buffer = buffer[start:]
        self._scanned = len(self._buffer)

    def _line(self, line: str) -> ServerEvent | None:
        """Take one line; an empty one completes the event."""
        if not line:
            return self._complete()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._size += len(value)
        elif field == "event":
            self._name = value
        return None  # comments (an empty field), `id` and `retry` carry nothing for us

    def _complete(self) -> ServerEvent | None:
        """Return the event gathered so far, and begin the next; one without data is none."""
        name, data = self._name, self._data
        self._name, self._data, self._size = "", [], 0
        return ServerEvent(name or "message", "\n".join(data)) if data else None


def _line_end(buffer: bytes, position: int) -> int:
    """Return where the next CR or LF stands, or -1."""
    feed = buffer.find(b"\n", position)
    back = buffer.find(b"\r", position, feed if feed >= 0 else len(buffer))
    return back if back >= 0 else feed
