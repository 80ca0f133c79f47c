"""Source code: the file's own text, cut at definitions; places are lines."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

from uait_server_ext.knowledge.reading.document import Document, Section
from uait_server_ext.knowledge.reading.prose import lines_of

# A line at the margin that opens something: not a closing bracket, not a comment's continuation.
OPENING = re.compile(r"[A-Za-z_@#\[/<]")

Start = tuple[int, tuple[str, ...]]  # line from 1, names of what is defined
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parse_python(path: Path, text: str, media_type: str) -> Document:
    """Cut Python at top-level definitions and methods; what does not parse, as other code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return parse_code(path, text, media_type)
    # ast counts lines by "\n" alone once other line ends are normalised; form feeds do not count.
    places = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    starts = [(places[min(line, len(places)) - 1], names) for line, names in _definitions(tree)]
    return Document(path.name, media_type, text, _sections(text, starts))


def parse_code(path: Path, text: str, media_type: str) -> Document:
    """Cut code where, after a blank line, something starts at the left margin."""
    return Document(path.name, media_type, text, _sections(text, _margins(text)))


def _definitions(tree: ast.Module) -> Iterator[Start]:
    for node in tree.body:
        if isinstance(node, Definition):
            yield _first_line(node), (node.name,)
        else:
            yield node.lineno, ()
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, Definition):
                    yield _first_line(member), (node.name, member.name)


def _first_line(node: Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _margins(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    blank = True
    for at, line in lines_of(text, 0):
        if blank and OPENING.match(line):
            yield at, ()
        blank = not line.strip()


def _sections(text: str, starts: Iterable[tuple[int, tuple[str, ...]]]) -> list[Section]:
    borders: dict[int, tuple[str, ...]] = {0: ()}
    for at, names in starts:
        borders[at] = names or borders.get(at, ())
    places = sorted(borders)
    return [
        Section(start, end, borders[start], loose=True)
        for start, end in zip(places, [*places[1:], len(text)], strict=True)
        if end > start
    ]
