"""Pictures: the text in them, by tesseract where it is installed (its program; no Python package).

Install it with `apt install tesseract-ocr` or `brew install tesseract`; nothing leaves the machine.
It reads in the languages that are installed for it (`apt install tesseract-ocr-deu`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.document import Document

PROGRAM = "tesseract"
NO_LANGUAGES = frozenset({"osd", "equ"})  # models of layout, listed among the languages
SECONDS = 50  # less than the reading process is given for a file
MISSING = (
    "Text in pictures is read where tesseract is installed, and it is not: `apt install "
    "tesseract-ocr` (Debian, Ubuntu) or `brew install tesseract` (macOS), then add the file again."
)


def can_read_pictures() -> bool:
    """Tell whether text recognition is installed."""
    return shutil.which(PROGRAM) is not None


def parse_picture(path: Path, data: bytes, media_type: str) -> Document:
    """Read the text in a picture.

    Raises:
        UnsupportedDocument: no text recognition here, no picture, or none that it can read in time.

    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise UnsupportedDocument(MISSING)
    command = [program, "stdin", "stdout", "-l", _languages(program)]
    try:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
            preexec_fn=_bound if sys.platform != "win32" else None,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedDocument(
            f"Reading the text in the picture took longer than {SECONDS} s: make it smaller."
        ) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = f" ({said[-1][:200]})" if said else ""
        raise UnsupportedDocument(
            f"tesseract cannot read the picture{reason}: save it anew as PNG."
        )
    text = done.stdout.decode("utf-8", "replace").replace("\f", "\n").strip()
    if not text:
        raise UnsupportedDocument("The picture shows no text.")
    return Document(path.name, media_type, text)


@cache
def _languages(program: str) -> str:
    """Return the installed languages, as tesseract takes them."""
    command = [program, "--list-langs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    # the first line is a heading; older releases print to standard error
    names = (done.stdout or done.stderr).split("\n")[1:]
    found = [name.strip() for name in names if name.strip() and name.strip() not in NO_LANGUAGES]
    return "+".join(found) or "eng"


def _bound() -> None:
    """Let it end by itself where the process that waits for it was killed."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
