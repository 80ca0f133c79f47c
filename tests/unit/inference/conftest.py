"""Building blocks for inference tests: where packages come from, a cache, an echo service."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.service import Inference

LOG = logging.getLogger("uait.test")
SLOW = ("slow", "large")


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that pip and uv take packages from, and nowhere else."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_CACHE", "1")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    """Return an empty model cache."""
    root = tmp_path / "models"
    root.mkdir()
    return ModelCache(root)


@pytest.fixture
def echo_inference(cache: ModelCache) -> Callable[..., Inference]:
    """Return a function that builds a service whose default chat model is an echo.

    Beside ``echo`` it knows ``slow`` and ``large``, which pause before each word and take a
    gigabyte by their own account.
    """

    def build(delay: float = 0.05, **options: Any) -> Inference:
        shipped = Catalogue.load().entries
        echo = next(entry for entry in shipped if entry.id == "echo")
        slow = {"delay_seconds": delay, "memory_bytes": 1_000_000_000}
        return Inference(
            cache=cache,
            catalogue=Catalogue(
                [*shipped, *(echo.model_copy(update={"id": id_, **slow}) for id_ in SLOW)]
            ),
            chat_model="echo",
            threads=1,
            log=LOG,
            **options,
        )

    return build
