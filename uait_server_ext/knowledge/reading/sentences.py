"""Where sentences begin and end, as exact spans of the text they stand in."""

from __future__ import annotations

import re
from collections.abc import Iterator

# What ends a block of prose: a blank line, or a line that starts a heading, list item or table row.
BLOCK = re.compile(r"\n[ \t]*(?=\n)|\n(?=[ \t]*(?:#{1,6} |[-*+•] |\d{1,3}[.)] |\||>|```|~~~))")
END = re.compile(
    r"[.!?…]+[\"'”’)\]*_]*(?=\s+[\"'“‘(\[*_#]*[^\W_a-z])|[。！？]+[」』”]?|[.!?…]+(?=\s*\Z)"
)
ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|Mrs?|Ms|Dr|Prof|Sr|Jr|St|vs|etc|cf|e\.g|i\.e|al|Figs?|Eqs?|Secs?|No|Vol|pp?|"
    r"approx|ca|Inc|Ltd|Co|Corp|resp|Ref|Tab|Ch|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec))\.$"
)

Span = tuple[int, int]


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> Iterator[Span]:
    """Yield the sentences of ``text[start:end]`` without white space around them, in order.

    Every character that is not white space is in exactly one sentence.
    """
    end = len(text) if end is None else end
    for block_start, block_end in _between(BLOCK, text, start, end):
        first = block_start
        for mark in END.finditer(text, block_start, block_end):
            if ABBREVIATION.search(text, max(first, mark.end() - 12), mark.end()):
                continue
            yield from trimmed(text, first, mark.end())
            first = mark.end()
        yield from trimmed(text, first, block_end)


def trimmed(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the span without white space at its ends; nothing where nothing else is in it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _between(border: re.Pattern[str], text: str, start: int, end: int) -> Iterator[Span]:
    for match in border.finditer(text, start, end):
        yield start, match.end()
        start = match.end()
    yield start, end
