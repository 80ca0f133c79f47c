"""Read one file into passages: hash, tell the kind, decode, parse, chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.chunk import Passage, chunk
from uait_server_ext.knowledge.reading.code import parse_code, parse_python
from uait_server_ext.knowledge.reading.decode import decode
from uait_server_ext.knowledge.reading.document import Document
from uait_server_ext.knowledge.reading.html import parse_html
from uait_server_ext.knowledge.reading.kinds import OFFICE, Parser, is_no_document, parser_for
from uait_server_ext.knowledge.reading.notebook import parse_notebook
from uait_server_ext.knowledge.reading.pdf import parse_pdf
from uait_server_ext.knowledge.reading.picture import parse_picture
from uait_server_ext.knowledge.reading.prose import parse_markdown, parse_rst, parse_text

TEXT_PARSERS: dict[Parser, Callable[[Path, str, str], Document]] = {
    "markdown": parse_markdown,
    "text": parse_text,
    "rst": parse_rst,
    "html": parse_html,
    "notebook": parse_notebook,
    "python": parse_python,
    "code": parse_code,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds. ``passages`` is None where the content is the one that was known."""

    sha256: str
    title: str = ""
    media_type: str = ""
    passages: list[Passage] | None = field(default=None)


def read(path: Path, known_sha256: str | None, max_bytes: int) -> Reading:
    """Read a file, unless its content is the known one.

    Raises:
        UnsupportedDocument: the file is too large, of another kind, damaged or without text.
        OSError: the file cannot be opened.

    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnsupportedDocument(f"The file grew over the limit of {max_bytes:,} bytes.")
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 == known_sha256:
        return Reading(sha256)
    document = parse(path, data)
    passages = chunk(document)
    if not passages:
        raise UnsupportedDocument("The file holds no text.")
    return Reading(sha256, document.title, document.media_type, passages)


def parse(path: Path, data: bytes) -> Document:
    """Parse a file's content by the kind that its name says.

    Raises:
        UnsupportedDocument: see `read`.

    """
    if path.suffix.lower() in OFFICE:
        raise UnsupportedDocument(
            f"Files of kind {path.suffix} are not read: save it as PDF, HTML or Markdown."
        )
    if is_no_document(path):
        raise UnsupportedDocument(f"Files of kind {path.suffix} hold no text to search.")
    parser, media_type = parser_for(path)
    if parser == "pdf":
        return parse_pdf(path, data, media_type)
    if parser == "picture":
        return parse_picture(path, data, media_type)
    return TEXT_PARSERS[parser](path, decode(data), media_type)
