"""Notebooks: cells and what they printed, read as plain JSON (importing nbformat takes 1.3 s)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.document import Document, Outline, Section, title_from
from uait_server_ext.knowledge.reading.prose import markdown_headings

MAX_OUTPUT = 4_000
BETWEEN = "\n\n"
# JSON can escape what no database stores: NUL and halves of surrogate pairs.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def parse_notebook(path: Path, text: str, media_type: str) -> Document:
    """Read the sources of all cells, and of code cells the text they put out.

    Raises:
        UnsupportedDocument: no JSON, or no notebook of format 4.

    """
    outline = Outline()
    title: str | None = None
    sections: list[Section] = []
    parts: list[str] = []
    at = 0
    for number, cell in enumerate(_cells(text), start=1):
        source = _joined(cell.get("source"))
        if cell.get("cell_type") == "markdown":
            for _, level, words in markdown_headings(source):
                outline.enter(level, words)
                title = title or words
        part = BETWEEN.join(piece for piece in (source, *_outputs(cell)) if piece.strip())
        if not part:
            continue
        sections.append(Section(at, at + len(part), outline.path, cell=number))
        parts.append(part)
        at += len(part) + len(BETWEEN)
    return Document(title_from(title, path), media_type, BETWEEN.join(parts), sections)


def _cells(text: str) -> list[dict[str, Any]]:
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedDocument(
            f"The notebook is no valid JSON ({error}): open and save it in Jupyter."
        ) from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise UnsupportedDocument(
            "This is no notebook of format 4: open and save it in Jupyter to bring it up to date."
        )
    return cells


def _outputs(cell: dict[str, Any]) -> Iterator[str]:
    outputs = cell.get("outputs")
    for output in outputs if isinstance(outputs, list) else ():
        if not isinstance(output, dict):
            continue
        data = output.get("data")
        if output.get("output_type") == "error":
            yield _joined(f"{output.get('ename')}: {output.get('evalue')}")[:MAX_OUTPUT]
        elif isinstance(data, dict):
            yield _joined(data.get("text/markdown") or data.get("text/plain"))[:MAX_OUTPUT]
        else:
            yield _joined(output.get("text"))[:MAX_OUTPUT]


def _joined(source: object) -> str:
    """Return a cell's text, which the format keeps as one string or as a list of lines."""
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return UNSTORABLE.sub("\ufffd", source) if isinstance(source, str) else ""
