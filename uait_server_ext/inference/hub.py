"""Where the model hub's client keeps its downloads, read without importing that client."""

from __future__ import annotations

import json
import os
from pathlib import Path


def repository_folder(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache, whether or not it exists."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or hub_home / "hub")
    return hub.expanduser() / f"models--{repository.replace('/', '--')}"


def snapshot(repository: str) -> Path | None:
    """Return the folder of the downloaded revision if all its weights are there."""
    folder = repository_folder(repository)
    try:
        revision = (folder / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None
    path = folder / "snapshots" / revision
    if not (path / "config.json").exists():
        return None
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text("utf-8"))
        weights = set(index["weight_map"].values())
    except OSError:
        weights = {"model.safetensors"}
    return path if all((path / name).exists() for name in weights) else None
