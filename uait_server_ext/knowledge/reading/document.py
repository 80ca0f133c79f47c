"""What every parser returns: the document's text and the sections it falls into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MAX_TITLE = 200

Counted = Literal["lines", "paragraphs"]


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document's text that passages do not cross: under a heading, a page, a cell.

    ``loose`` sections (functions of a source file) may share a passage with their neighbours.
    """

    start: int
    end: int
    headings: tuple[str, ...] = ()
    page: int | None = None
    cell: int | None = None
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A file as text. Sections are in order and do not overlap; places count in ``text``.

    ``counted`` names what a place without page, cell or heading is counted in.
    """

    title: str
    media_type: str
    text: str
    sections: Sequence[Section] = field(default_factory=tuple)
    counted: Counted = "lines"


def title_from(candidate: str | None, path: Path) -> str:
    """Return a one-line title: the candidate where it says something, else the file's name."""
    title = re.sub(r"\s+", " ", candidate or "").strip()
    return title[:MAX_TITLE] if title else path.name


class Outline:
    """The headings above the present point of a document, outermost first."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, str]] = []

    def enter(self, level: int, heading: str) -> None:
        """Open a heading, closing those of the same or a deeper level."""
        while self._stack and self._stack[-1][0] >= level:
            self._stack.pop()
        if heading:
            self._stack.append((level, heading))

    @property
    def path(self) -> tuple[str, ...]:
        """The open headings."""
        return tuple(heading for _, heading in self._stack)
