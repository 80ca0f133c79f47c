"""The trainer: ``python -m uait_server_ext.inference.tuning.trainer``, a process of its own.

Standard input brings one line of JSON, the task, then words: ``cancel`` (end now) and ``stop``
(keep a checkpoint and end). At its end the parent is gone and so is this process. Events go out as
lines of JSON over a private descriptor, because libraries print. The main thread computes: MLX must
stay there.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from uait_server_ext.errors import Conflict, UaitError
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.storage.files import write_atomic

from . import checkpoint
from .data import Example, Examples
from .evaluation import score_of
from .models import Base, Score, TuneNote, TuneScore, TuneSettings, TuneStarted

EXAMPLES = "examples.json"
BEFORE = "before.json"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
RESULT = "result.json"
LOCK = "trainer.lock"
LOCK_SECONDS = 10.0
POLL_SECONDS = 0.1
NICENESS = 10  # a chat goes before


class Cancelled(Exception):
    """The job is no longer wanted."""


class Trainer:
    """Carries out one task and tells its parent about it."""

    def __init__(self, task: dict[str, Any], words: Iterator[bytes], events: IO[bytes]) -> None:
        self._task = task
        self._words = words
        self._events = events
        self._word = ""
        self._folder = Path(task["folder"])
        self._cache = ModelCache(Path(task["cache"]))

    def run(self) -> None:
        """Do the task; the last line out is ``done``, ``failed`` or ``stopped``."""
        threading.Thread(target=self._listen, daemon=True).start()
        from .learning import Interrupted

        try:
            with only_one(self._folder):
                result = self._tune() if self._task["mode"] == "tune" else self._fuse()
            self._send({"type": "done", **result})
        except (Interrupted, Cancelled):
            self._send({"type": "stopped"})
        except UaitError as error:
            self._send({"type": "failed", "code": error.code, "detail": error.detail})
        except MemoryError:
            self._send({"type": "failed", "code": "internal", "detail": OUT_OF_MEMORY})
        except Exception as error:
            traceback.print_exception(error)
            detail = f"{type(error).__name__}: {error}"[:500]
            self._send({"type": "failed", "code": "internal", "detail": detail})

    def heed(self) -> None:
        """Raise what the parent has said."""
        from .learning import Interrupted

        if self._word == "stop":
            raise Interrupted
        if self._word == "cancel":
            raise Cancelled

    def tell(self, event: Base) -> None:
        """Send an event."""
        self._send(event.model_dump(mode="json"))

    def _tune(self) -> dict[str, Any]:
        finished = self._folder / RESULT
        if finished.exists():  # only the word of it was lost
            kept: dict[str, Any] = json.loads(finished.read_text("utf-8"))
            self._tell_after(kept)
            return kept
        from . import base_model, batches
        from .learning import Learner

        settings = TuneSettings.model_validate(self._task["settings"])
        examples = Examples.restore(self._folder / EXAMPLES)
        note = base_model.prepare_machine(self._cache)
        if note:
            self.tell(TuneNote(text=note))
        base = base_model.load_base(self._model_folder(), settings.method, note)
        longest = base.longest(settings)
        train, valid, held = (
            batches.tokenized(
                base.tokenizer, part, longest=longest, answer_only=settings.answer_only
            )
            for part in (examples.train, examples.valid, examples.heldout)
        )
        self.heed()
        heldout = examples.heldout[: settings.score_limit]
        self._score_before(base, heldout, settings)
        config = base_model.add_adapter(base.model, settings)
        learner = Learner(
            base.model,
            train,
            valid,
            settings=settings,
            folder=self._folder / CHECKPOINTS,
            tell=self.tell,
            heed=self.heed,
        )
        self.tell(
            TuneStarted(
                step=learner.progress.step,
                steps=settings.steps,
                trained_parameters=base_model.trained_parameters(base.model),
                parameters=base.parameters,
                method=base.method,
                longest=max(len(tokens.ids) for tokens in (*train, *valid, *held)),
            )
        )
        weights = learner.run()
        base.model.load_weights(list(weights.items()), strict=False)
        after = self._score(base, heldout, settings)
        with checkpoint.writing(self._folder / ADAPTER) as partial:
            base_model.write_adapter(partial, config | {"model": self._task["model"]}, weights)
        progress = learner.progress
        result = {
            "adapter": str(self._folder / ADAPTER),
            "step": progress.step,
            "best_step": progress.best_step,
            "best_loss": progress.best_loss,
            "validations": progress.validations,
            "after": after.model_dump() if after else None,
        }
        write_atomic(finished, json.dumps(result).encode())
        self._tell_after(result)
        return result

    def _tell_after(self, result: dict[str, Any]) -> None:
        if result["after"]:
            self.tell(TuneScore(when="after", score=Score.model_validate(result["after"])))

    def _fuse(self) -> dict[str, Any]:
        from . import base_model

        note = base_model.prepare_machine(self._cache)
        unpacked = bool(self._task["unpacked"])
        method = "lora" if unpacked else "auto"
        base = base_model.load_base(self._model_folder(), method, note)  # type: ignore[arg-type]
        target = Path(self._task["target"])
        with checkpoint.writing(target) as partial:
            base_model.fuse(base, Path(self._task["adapter"]), partial, unpacked=unpacked)
        size = sum(file.stat().st_size for file in target.iterdir())
        return {"folder": str(target), "size_bytes": size}

    def _score_before(
        self, base: Any, heldout: tuple[Example, ...], settings: TuneSettings
    ) -> None:
        kept = self._folder / BEFORE
        if kept.exists():
            score = Score.model_validate_json(kept.read_bytes())
        else:
            made = self._score(base, heldout, settings)
            if made is None:
                return
            score = made
            write_atomic(kept, score.model_dump_json().encode())
        self.tell(TuneScore(when="before", score=score))

    def _score(
        self, base: Any, heldout: tuple[Example, ...], settings: TuneSettings
    ) -> Score | None:
        if not heldout:
            return None
        from . import base_model

        prompts = [base.tokenizer.prompt(example.prompt) for example in heldout]
        said = base_model.answers(base, prompts, settings.answer_tokens, self.heed)
        return score_of(
            [example.prompt[-1]["content"] for example in heldout],
            [example.answer for example in heldout],
            said,
        )

    def _model_folder(self) -> Path:
        if self._task.get("model_folder"):
            return Path(self._task["model_folder"])
        entry = CatalogueEntry.model_validate(self._task["entry"])
        self._cache.use(entry)
        if entry.format != "gguf":
            return self._cache.source(entry)
        from uait_server_ext.inference.backends.mlx import FORM
        from uait_server_ext.inference.gguf_convert import to_mlx

        return self._cache.derived(entry, FORM, to_mlx)

    def _listen(self) -> None:
        for line in self._words:
            self._word = line.decode("ascii", "replace").strip()
        os._exit(0)  # the parent is gone: whatever the main thread does is for nobody

    def _send(self, message: dict[str, Any]) -> None:
        self._events.write(json.dumps(message).encode() + b"\n")
        self._events.flush()


OUT_OF_MEMORY = (
    "There is not enough memory. Use a smaller batch, `recompute`, the method `qlora`, or a "
    "smaller model."
)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a job's folder: a trainer whose parent was killed may live for a moment longer.

    Raises:
        Conflict: another trainer works on it.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    with (folder / LOCK).open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Conflict(
                        "Another process works on this job. Wait until it has ended."
                    ) from None
                time.sleep(POLL_SECONDS)
        yield


def main() -> None:
    """Take standard input and output away from everything else in this process, and work."""
    faulthandler.enable()
    words, events = lines_of(os.dup(0)), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    os.nice(NICENESS)
    task = next(words, None)
    if task is not None:
        Trainer(json.loads(task), words, events).run()


def lines_of(descriptor: int) -> Iterator[bytes]:
    """Yield lines as they come; a buffered file could not be left by a thread at the end."""
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


if __name__ == "__main__":
    main()
