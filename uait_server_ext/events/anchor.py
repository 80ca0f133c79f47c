"""The anchor: the head of the audit log in a file outside the database.

The chain shows a changed or missing row, but not that the newest rows were cut off: the anchor
does. It moves forward after each commit, and only from a head that the database still has: where
the log does not reach it any more it stays, as the evidence.
"""

from __future__ import annotations

import hmac
import json
import threading
from dataclasses import dataclass
from pathlib import Path

from uait_server_ext.paths import private_folder
from uait_server_ext.storage.files import write_atomic


@dataclass(frozen=True, slots=True)
class Mark:
    """One place in the log."""

    sequence: int
    chain: str


class Anchor:
    """Reads and writes the anchor file; blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def read(self, key: bytes) -> Mark | None:
        """Return the anchored head, none where there is no file.

        Raises:
            ValueError: the file was not written by this log.
        """
        try:
            content = json.loads(self.path.read_bytes())
            mark = Mark(int(content["sequence"]), str(content["chain"]))
            seal = str(content["seal"])
        except FileNotFoundError:
            return None
        except (KeyError, TypeError) as error:
            raise ValueError("not an anchor") from error
        if not hmac.compare_digest(seal.encode(), seal_of(key, mark).encode()):
            raise ValueError("not this log's anchor")
        return mark

    def move(self, key: bytes, mark: Mark, *, back: bool = False) -> None:
        """Write a head; an older one than is there only with `back`."""
        with self._lock:
            if not back:
                there = self.read(key)
                if there and there.sequence >= mark.sequence:
                    return
            content = {"sequence": mark.sequence, "chain": mark.chain, "seal": seal_of(key, mark)}
            private_folder(self.path.parent)
            write_atomic(self.path, json.dumps(content).encode())


def seal_of(key: bytes, mark: Mark) -> str:
    """Return what shows that the log's own process wrote an anchor."""
    text = json.dumps(["anchor", mark.sequence, mark.chain])
    return hmac.digest(key, text.encode(), "sha256").hex()
