"""Markdown, reStructuredText and plain text: the file's own text, in sections by heading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from uait_server_ext.knowledge.reading.document import Document, Outline, Section, title_from

ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
FRONT_MATTER = re.compile(r"---[ \t]*\n(?:(.*?)\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE | re.IGNORECASE)
RST_LINE = re.compile(r"([=\-~^\"'`*+#.:_])\1{2,}[ \t]*$")
MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|[*`]+")

Heading = tuple[int, int, str]  # first character, level, words
Line = tuple[int, str]  # first character, the line without its end


def parse_markdown(path: Path, text: str, media_type: str) -> Document:
    """Read Markdown; the title is the front matter's, else that of the first heading."""
    front = FRONT_MATTER.match(text)
    titled = FRONT_TITLE.search(front.group(1) or "") if front else None
    headings = list(markdown_headings(text, front.end() if front else 0))
    title = titled.group(1).strip("\"'") if titled else _first(headings)
    sections = sections_of(text, headings)
    return Document(title_from(title, path), media_type, text, sections)


def parse_rst(path: Path, text: str, media_type: str) -> Document:
    """Read reStructuredText as text; headings are the underlined lines."""
    headings = list(_rst_headings(text))
    return Document(
        title_from(_first(headings), path), media_type, text, sections_of(text, headings)
    )


def parse_text(path: Path, text: str, media_type: str) -> Document:
    """Read plain text; a short first line with a blank one after it is the title."""
    first, _, rest = text.lstrip().partition("\n")
    stands_alone = len(first) <= 150 and (not rest or not rest.partition("\n")[0].strip())
    title = first if stands_alone and rest.strip() else None
    return Document(title_from(title, path), media_type, text, sections_of(text, []))


def markdown_headings(text: str, start: int = 0) -> Iterator[Heading]:
    """Yield ATX and setext headings outside of fenced code."""
    fence = ""
    before: Line | None = None
    for at, line in lines_of(text, start):
        if opened := FENCE.match(line):
            mark = opened.group(1)
            if not fence:
                fence = mark
            elif mark.startswith(fence) and not line[opened.end() :].strip():
                fence = ""
            before = None
        elif fence:
            continue
        elif atx := ATX.match(line):
            yield at, len(atx.group(1)), plain(atx.group(2) or "")
            before = None
        elif before and (setext := SETEXT.match(line)):
            yield before[0], 1 if setext.group(1)[0] == "=" else 2, plain(before[1])
            before = None
        else:
            # Only a paragraph of one line is taken for a setext heading.
            alone = line.strip() and not line.startswith(("    ", "\t", "|", ">", "- ", "* "))
            before = (at, line) if alone and before is None else None
            if not line.strip():
                before = None


def _rst_headings(text: str) -> Iterator[Heading]:
    levels: list[str] = []
    before: Line | None = None
    overline = ""
    for at, line in lines_of(text, 0):
        mark = RST_LINE.match(line)
        if mark and before and len(line.rstrip()) >= len(before[1].rstrip()):
            style = overline + mark.group(1)
            if style not in levels:
                levels.append(style)
            yield before[0], levels.index(style) + 1, before[1].strip()
            before, overline = None, ""
        elif mark:
            before, overline = None, mark.group(1)
        elif line.strip():
            before = (at, line) if before is None and not line[0].isspace() else None
        else:
            before, overline = None, ""


def sections_of(text: str, headings: list[Heading]) -> list[Section]:
    """Cut ``text`` at its headings."""
    outline = Outline()
    sections = []
    borders = [*headings, (len(text), 0, "")]
    if borders[0][0] > 0:
        sections.append(Section(0, borders[0][0]))
    for (start, level, words), (end, _, _) in pairwise(borders):
        outline.enter(level, words)
        sections.append(Section(start, end, outline.path))
    return sections


def lines_of(text: str, start: int) -> Iterator[Line]:
    """Yield each line from ``start`` on with the place of its first character."""
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, text[start:end]
        start = end + 1


def plain(heading: str) -> str:
    """Return a heading's words without Markdown's marks."""
    return MARKUP.sub(lambda match: match.group(1) or "", heading).strip()


def _first(headings: list[Heading]) -> str | None:
    return next((words for _, _, words in headings if words), None)
