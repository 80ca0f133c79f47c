"""Bytes to text: UTF-8, UTF-16 by its mark, Windows-1252 where that is plainly what it is."""

from __future__ import annotations

import codecs
import re

from uait_server_ext.errors import UnsupportedDocument

# Of a text in a Western language a few per cent of the bytes are accented letters and quotes.
MAX_HIGH_SHARE = 0.2
MAX_CONTROL_SHARE = 0.01
CONTROL = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")


def decode(data: bytes) -> str:
    """Return the text of a file with ``\\n`` line ends.

    Raises:
        UnsupportedDocument: the bytes are no text, or text in an encoding that cannot be told.

    """
    text = _decoded(data)
    if text.count("\0") or len(CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        raise UnsupportedDocument("This is a binary file, not text, whatever its name says.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise UnsupportedDocument(
                "The file starts as UTF-16 text but does not go on so: save it as UTF-8."
            ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if b"\0" in data:
        raise UnsupportedDocument("This is a binary file, not text, whatever its name says.")
    high = sum(byte >= 0x80 for byte in data)
    if high <= MAX_HIGH_SHARE * len(data):
        try:
            return data.decode("cp1252")
        except UnicodeDecodeError:
            pass
    raise UnsupportedDocument("The text's encoding cannot be told: save the file as UTF-8.")
