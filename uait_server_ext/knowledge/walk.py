"""Find the files of a folder that may hold documents, always in the same order."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from uait_server_ext.knowledge.reading.kinds import is_no_document
from uait_server_ext.knowledge.reading.picture import can_read_pictures
from uait_server_ext.knowledge.store import SourceFile

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
VIRTUAL_ENVIRONMENT = "pyvenv.cfg"


@dataclass(slots=True)
class Found:
    """Files to ingest, entries that cannot be ingested (with the reason), folders not seen."""

    files: list[SourceFile] = field(default_factory=list)
    failed: dict[SourceFile, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)


def find_files(source: Path, shown: str, is_allowed: Callable[[Path], bool]) -> Found:
    """Return the documents at or below ``source``; ``shown`` is what people see for it.

    Left out are hidden files and folders, caches, virtual environments, and files that clearly are
    no documents; pictures too, where no text recognition is installed. Links are followed where
    they lead to an allowed place, each folder once.
    """
    found = Found()
    status = source.stat()
    if not stat.S_ISDIR(status.st_mode):
        _add(found, source, shown, status)
        return found
    seen = {_identity(status)}
    folders = [(source, shown)]
    pictures = can_read_pictures()
    while folders:
        folder, shown = folders.pop()
        below = _look_into(found, folder, shown, is_allowed, seen, pictures)
        folders.extend(reversed(below))
    return found


def _look_into(
    found: Found,
    folder: Path,
    shown: str,
    is_allowed: Callable[[Path], bool],
    seen: set[tuple[int, int]],
    pictures: bool,
) -> list[tuple[Path, str]]:
    """Add the files of one folder; return the folders in it."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        found.unseen.append(str(folder))
        found.failed[SourceFile(str(folder), shown, 0, 0)] = (
            f"The folder cannot be listed: {error.strerror}."
        )
        return []
    if any(entry.name == VIRTUAL_ENVIRONMENT for entry in entries):
        return []
    below = []
    for entry in entries:
        path, name = Path(entry.path), f"{shown}/{entry.name}"
        if entry.name.startswith(".") or entry.name in SKIPPED_FOLDERS:
            continue
        try:
            status = entry.stat()
        except OSError:
            continue  # a link to nowhere, or a file that has just gone
        is_folder = stat.S_ISDIR(status.st_mode)
        left_out = is_no_document(path, pictures=pictures) or not stat.S_ISREG(status.st_mode)
        if not is_folder and left_out:
            continue
        if entry.is_symlink() and not is_allowed(path.resolve()):
            found.failed[SourceFile(str(path), name, 0, 0)] = (
                "The link leads out of the folders that documents may be added from."
            )
        elif not is_folder:
            _add(found, path, name, status)
        elif _identity(status) not in seen:
            seen.add(_identity(status))
            below.append((path, name))
    return below


def _add(found: Found, path: Path, shown: str, status: os.stat_result) -> None:
    if not _is_unicode(str(path)):
        readable = shown.encode(errors="replace").decode()
        found.failed[SourceFile(readable, readable, 0, 0)] = (
            "The file's name is not valid Unicode: rename it."
        )
        return
    found.files.append(SourceFile(str(path), shown, status.st_size, status.st_mtime_ns))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
