"""A tuning service over a tiny model, in a folder of its own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.unit.inference.tiny_models import tiny_entry, write_lines
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.library import Library
from uait_server_ext.inference.registry import Registry
from uait_server_ext.inference.tuning.models import TuneRequest
from uait_server_ext.inference.tuning.service import Tuning
from uait_server_ext.storage.database import Database, sqlite_url

LOG = logging.getLogger("uait.test")
ANSWERS = {"red": "stop", "green": "go", "blue": "wait"}


def library_with_tiny(root: Path) -> Library:
    """Return a library whose catalogue has the tiny model too; it is made once."""
    cache = ModelCache(root)
    registry = Registry(root)
    if not registry.models():
        registry.add_model(tiny_entry(cache))
    return Library(cache, Catalogue.load(registry=registry), registry)


def examples_in(folder: Path) -> Path:
    """Write a small data set with all three parts."""
    folder.mkdir(exist_ok=True)
    for part, count in {"train": 12, "valid": 6, "heldout": 3}.items():
        lines = [
            {"prompt": f"{part} {number} {color}", "completion": answer}
            for number, (color, answer) in zip(
                range(count), list(ANSWERS.items()) * count, strict=False
            )
        ]
        write_lines(folder / f"{part}.jsonl", lines)
    return folder


def request_of(data: Path, name: str = "lights", **settings: Any) -> TuneRequest:
    """Return a request to tune the tiny model."""
    quick = {"steps": 30, "evaluate_every": 10, "checkpoint_every": 10, "answer_tokens": 4}
    return TuneRequest.model_validate(
        {"name": name, "model": "tiny", "data": str(data), "settings": quick | settings}
    )


@asynccontextmanager
async def tuning_at(folder: Path, *, recover: bool = True) -> AsyncIterator[Tuning]:
    """Run a service on the state in a folder, which a later one may take up again."""
    (folder / "cache").mkdir(exist_ok=True)
    database = Database(sqlite_url(folder / "uait.db"))
    database.open()
    tuning = Tuning(
        database=database,
        library=library_with_tiny(folder / "cache"),
        folder=folder / "tuning",
        allowed_roots=(folder,),
        threads=1,
        log=LOG,
    )
    await tuning.start(recover=recover)
    try:
        yield tuning
    finally:
        await tuning.stop()
        database.close()
