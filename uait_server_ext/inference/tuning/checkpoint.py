"""What survives a kill: folders that are whole and verified, or not there.

::

    checkpoints/step-000040/    adapter.safetensors    the weights that are being learned
                                best.safetensors       those of the lowest validation loss so far
                                optimizer.safetensors
                                state.json             step, position in the data, losses, digests

A checkpoint is written beside its place, flushed, and renamed. The newest two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from uait_server_ext.storage.files import sha256_of, sync_folder

KEPT = 2
STATE = "state.json"
PARTIAL = ".partial"


@dataclass
class Progress:
    """Where learning stands; with the weights and the optimizer's state it is all there is.

    ``epoch`` and ``position`` (batches of the epoch that were read) follow from ``step``: they are
    kept so that a checkpoint of other data, or of another batch size, is noticed.
    """

    data_sha256: str
    step: int = 0
    epoch: int = 0
    position: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    worse: int = 0  # validations since the best one
    stopped_early: bool = False
    validations: list[tuple[int, float]] = field(default_factory=list)


def save(folder: Path, progress: Progress, write: Callable[[Path], None]) -> Path:
    """Write the checkpoint of a step; ``write`` puts the weights into the folder it is given.

    A kill at any moment leaves the checkpoints that were there before, or those and this one.
    """
    place = folder / f"step-{progress.step:06}"
    with writing(place) as partial:
        write(partial)
        digests = {file.name: sha256_of(file) for file in sorted(partial.iterdir())}
        state = {"progress": asdict(progress), "files": digests}
        (partial / STATE).write_text(json.dumps(state), "utf-8")
    for old in sorted(_places(folder))[:-KEPT]:
        shutil.rmtree(old)
    return place


def newest(folder: Path) -> tuple[Path, Progress] | None:
    """Return the newest whole checkpoint, none where there is none; damaged ones are passed by."""
    for place in sorted(_places(folder), reverse=True):
        try:
            state = json.loads((place / STATE).read_text("utf-8"))
            if all(sha256_of(place / name) == sha for name, sha in state["files"].items()):
                progress = Progress(**state["progress"])
                progress.validations = [(step, loss) for step, loss in progress.validations]
                return place, progress
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


class writing:  # noqa: N801 it reads as a verb where it is used
    """Give a folder beside ``place`` to fill; at the end flush it and put it in its place."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._partial = place.with_name(place.name + PARTIAL)

    def __enter__(self) -> Path:
        _remove(self._partial)
        self._partial.mkdir(parents=True)
        return self._partial

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for file in self._partial.iterdir():
                _flush(file)
            sync_folder(self._partial)
            _remove(self._place)
            self._partial.rename(self._place)
            sync_folder(self._place.parent)
        _remove(self._partial)


def _places(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("step-*") if not path.name.endswith(PARTIAL))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
