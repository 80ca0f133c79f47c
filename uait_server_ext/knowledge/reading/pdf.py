"""PDF: the text layer, page by page, through PDFium."""

from __future__ import annotations

import re
from pathlib import Path

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.document import Document, Section, title_from

BETWEEN = "\n\n"
# PDFium marks a hyphen at a line's end as U+FFFE (older ones as U+0002): the word goes on below.
HYPHEN = re.compile("[\ufffe\x02\u00ad]\\s*")
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\ufffe\uffff]|[\ud800-\udfff]")


def parse_pdf(path: Path, data: bytes, media_type: str) -> Document:
    """Read the text of all pages.

    Raises:
        UnsupportedDocument: damaged, locked by a password, or without a text layer.

    """
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise UnsupportedDocument(
                "The PDF is locked by a password: save a copy without one."
            ) from None
        raise UnsupportedDocument(
            "The PDF is damaged, or no PDF at all: open it in a viewer and save it anew."
        ) from None
    try:
        title = pdf.get_metadata_value("Title")
        pages = [_page_text(pdf, number) for number in range(len(pdf))]
    finally:
        pdf.close()

    sections = []
    parts = []
    at = 0
    for number, page in enumerate(pages, start=1):
        if page:
            sections.append(Section(at, at + len(page), page=number))
            parts.append(page)
            at += len(page) + len(BETWEEN)
    if not parts:
        raise UnsupportedDocument(
            "The PDF holds no text, only pictures of it: run text recognition (OCR) over it first."
        )
    return Document(
        title_from(UNPRINTABLE.sub("", title), path), media_type, BETWEEN.join(parts), sections
    )


def _page_text(pdf: object, number: int) -> str:
    page = pdf[number]  # type: ignore[index]
    try:
        text_page = page.get_textpage()
        try:
            text: str = text_page.get_text_range()
        finally:
            text_page.close()
    finally:
        page.close()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return UNPRINTABLE.sub("", HYPHEN.sub("", text)).strip()
