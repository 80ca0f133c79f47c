"""Fetch a repository of the model hub: ``python -m uait_server_ext.inference.hub_fetch``.

Arguments: repository, revision (empty: the newest), its folder in the hub's cache. Metadata and
bytes come through the hub's own client, with its endpoint, login and proxies. What that client does
not do: a download that was broken off is kept and goes on where it was, also in another process;
each file is checked against the hub's digest; and the revision is named only when all its files are
there, so that nobody finds a half.

Only data is fetched: weights as safetensors, configuration, tokenizer. No pickles and no code.
"""

from __future__ import annotations

import hashlib
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .hub import NEWEST

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
)
PART = ".part"
READ_BYTES = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fetch(repository: str, revision: str, folder: Path) -> None:
    """Fetch and verify every wanted file, then name the revision.

    Raises:
        ValueError: a file does not match the hub's digest, or the repository holds no model.
    """
    import huggingface_hub
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    info = huggingface_hub.HfApi().model_info(
        repository, revision=revision or None, files_metadata=True
    )
    files = [file for file in info.siblings or [] if is_wanted(file.rfilename)]
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise ValueError(f"error: {repository} has no weights in the safetensors format")
    commit = str(info.sha)
    blobs, snapshot = folder / "blobs", folder / "snapshots" / commit
    blobs.mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in files:
        digest = digest_of(file)
        blob = blobs / digest
        if not blob.exists():
            part = blobs / f"{digest}{PART}"
            with part.open("ab") as target:
                http_get(
                    huggingface_hub.hf_hub_url(repository, file.rfilename, revision=commit),
                    target,
                    resume_size=target.tell(),
                    headers=build_hf_headers(),
                    expected_size=file.size,
                )
            if not matches(part, digest):
                part.unlink()
                raise ValueError(
                    f"error: {file.rfilename} does not match the digest that the hub names for "
                    "it, so it was not kept"
                )
            part.rename(blob)
        link = snapshot / file.rfilename
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..", "..", "blobs", digest))
    reference = folder / "refs" / (revision or NEWEST)
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit, "utf-8")


def is_wanted(name: str) -> bool:
    """Say whether a file of a repository is data that a model is loaded from."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in WANTED)


def digest_of(file: Any) -> str:
    """Return what the hub's cache calls a file's content."""
    digest = str(file.lfs.sha256 if file.lfs is not None else file.blob_id)
    if not DIGEST.fullmatch(digest):  # it becomes a file's name
        raise ValueError(f"error: the hub names no digest for {file.rfilename}")
    return digest


def matches(path: Path, digest: str) -> bool:
    """Compare a file with its digest: SHA-256, or git's SHA-1 of a small file."""
    if len(digest) == 64:
        summed = hashlib.sha256()
    else:
        header = f"blob {path.stat().st_size}\0".encode()
        summed = hashlib.sha1(header, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            summed.update(block)
    return summed.hexdigest() == digest


if __name__ == "__main__":
    try:
        fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except ValueError as error:
        sys.exit(str(error))
