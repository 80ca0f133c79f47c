"""What a derived index says of itself: how far it followed the journal, and that it is whole.

The seal is a small file beside the index, written last. An index without a seal that fits is
thrown away and built anew from the rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uait_server_ext.storage.files import sha256_of, write_atomic


@dataclass(frozen=True, slots=True)
class Seal:
    """``form`` names the store and the way the index is built; ``seq`` its last journal entry."""

    form: str
    seq: int

    def write(self, path: Path, files: Sequence[Path]) -> None:
        """Seal ``files`` as they are now."""
        content = {
            "form": self.form,
            "seq": self.seq,
            "files": {file.name: [file.stat().st_size, sha256_of(file)] for file in files},
        }
        write_atomic(path, json.dumps(content, indent=1).encode())


def sealed_seq(path: Path, folder: Path, form: str) -> int | None:
    """Return the journal entry up to which the index in ``folder`` is whole.

    None where the seal is missing or of another form, or a file differs from what was sealed.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["form"] != form:
            return None
        for name, (size, sha256) in content["files"].items():
            file = folder / name
            if file.stat().st_size != size or sha256_of(file) != sha256:
                return None
        return int(content["seq"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
