"""Where the model hub's client keeps its downloads, read without importing that client.

::

    models--ORG--NAME/blobs/<digest>              contents; SHA-256 of a large file, git's of others
    models--ORG--NAME/snapshots/<commit>/<name>   links to them
    models--ORG--NAME/refs/<revision>             the commit that a name stands for
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

NEWEST = "main"


def repository_folder(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache, whether or not it exists."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or hub_home / "hub")
    return hub.expanduser() / f"models--{repository.replace('/', '--')}"


def snapshot(repository: str, revision: str | None = None) -> Path | None:
    """Return the folder of the downloaded revision if all its weights are there."""
    folder = repository_folder(repository)
    try:
        commit = (folder / "refs" / (revision or NEWEST)).read_text("utf-8").strip()
    except OSError:
        if revision is None:
            return None
        commit = revision  # a revision may be a commit itself
    path = folder / "snapshots" / commit
    if not (path / "config.json").exists():
        return None
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text("utf-8"))
        weights = set(index["weight_map"].values())
    except OSError:
        weights = {"model.safetensors"}
    return path if all((path / name).exists() for name in weights) else None


def bytes_here(repository: str) -> int:
    """Return how many bytes of a repository are here, those of a broken-off download included."""
    try:
        blobs = [path.lstat() for path in (repository_folder(repository) / "blobs").iterdir()]
    except OSError:
        return 0
    return sum(blob.st_size for blob in blobs)


def nearest_folder(path: Path) -> Path:
    """Return the path or the nearest folder above it that exists: the disk it will be on."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def remove(repository: str) -> int:
    """Delete a repository from the hub's cache, for every program; return the bytes freed."""
    folder = repository_folder(repository)
    freed = bytes_here(repository)
    if folder.exists():
        shutil.rmtree(folder)
    return freed
