"""The loop that learns: steps, validation, early stop, checkpoints.

A step is a function of weights, optimizer state, seed and its own number alone. So a job that goes
on from a checkpoint ends with the very weights that it would have had without the interruption
(on a CPU to the last bit).
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from uait_server_ext.errors import InvalidInput
from uait_server_ext.inference import machine

from . import checkpoint
from .batches import PAD_TO, Order, Tokens, digest_of
from .checkpoint import Progress
from .models import Base, TuneCheckpoint, TuneLoss, TuneNote, TuneSettings, TuneValidation

ADAPTER = "adapter.safetensors"
BEST = "best.safetensors"
OPTIMIZER = "optimizer.safetensors"
FLOOR = 0.1  # of the learning rate at the end

Weights = dict[str, Any]
Tell = Callable[[Base], None]


class Interrupted(Exception):
    """The server stops: keep what there is and end; the job goes on later."""


class Learner:
    """Teaches the adapter that is in a model; picks up the newest checkpoint in its folder.

    Args:
        model: with an adapter in it (`base_model.add_adapter`).
        tell: hears what happens.
        heed: called between pieces of work; raises to end it.
    """

    def __init__(
        self,
        model: Any,
        train: Sequence[Tokens],
        valid: Sequence[Tokens],
        *,
        settings: TuneSettings,
        folder: Path,
        tell: Tell,
        heed: Callable[[], None],
    ) -> None:
        import mlx.optimizers as optim

        self.settings = settings
        self._model = model
        self._train = train
        self._valid = valid
        self._order = Order(train, settings.batch_size, settings.seed)
        self._valid_batches = Order(valid, settings.batch_size, 0).in_order()
        self._folder = folder
        self._tell = tell
        self._heed = heed
        self._optimizer: Any = optim.Adam(learning_rate=settings.learning_rate)
        self._optimizer.init(model.trainable_parameters())
        self._best: Weights = {}
        digest = digest_of([*train, *valid], settings.model_dump_json())
        self.progress = Progress(digest)
        self._restore()

    def run(self) -> Weights:
        """Learn to the end; return the weights to keep.

        Raises:
            InvalidInput: the loss is no number any more.
            Interrupted: as `heed` does, after a checkpoint.
        """
        restore_blocks = self._recompute() if self.settings.recompute else None
        try:
            self._learn()
        except Interrupted:
            if self.progress.step:
                self._save()
            raise
        finally:
            if restore_blocks is not None:
                restore_blocks()
        return self._best if self.settings.keep == "best" else self._weights()

    def _learn(self) -> None:
        progress = self.progress
        if self._is_validation_due():  # an interruption may have come between step and validation
            self._validate()
        step = self._step_function()
        window = _Window()
        self._model.train()
        while progress.step < self.settings.steps and not progress.stopped_early:
            self._heed()
            self._one_step(step, window)
            self._after_step(window)

    def _one_step(self, step: Callable[..., Any], window: _Window) -> None:
        import mlx.core as mx

        progress = self.progress
        mx.random.seed(self.settings.seed + progress.step)
        self._optimizer.learning_rate = self._rate(progress.step)
        loss, count = step(*_arrays(self._train, self._order.batch(progress.step)))
        mx.eval(self._model.trainable_parameters(), self._optimizer.state, loss, count)
        if not math.isfinite(loss.item()):
            raise InvalidInput(
                f"At step {progress.step + 1} the loss is no number any more. Start again with a "
                "lower learning rate."
            )
        window.add(loss.item(), int(count.item()))
        progress.step += 1
        progress.epoch, progress.position = self._order.place(progress.step)

    def _after_step(self, window: _Window) -> None:
        import mlx.core as mx

        step, settings = self.progress.step, self.settings
        last = step == settings.steps
        if last or step % settings.report_every == 0:
            loss, rate = window.take()
            memory = int(mx.get_peak_memory())
            self._tell(TuneLoss(step=step, loss=loss, tokens_per_second=rate, memory_bytes=memory))
        if self._is_validation_due():
            self._validate()
            window.restart()
        if last or self.progress.stopped_early or step % settings.checkpoint_every == 0:
            self._save()
            window.restart()

    def _is_validation_due(self) -> bool:
        step, settings = self.progress.step, self.settings
        if not self.progress.validations:
            return True
        regular = step == settings.steps or step % settings.evaluate_every == 0
        return regular and self.progress.validations[-1][0] != step

    def _step_function(self) -> Callable[..., Any]:
        import mlx.core as mx
        from mlx.nn.utils import value_and_grad as value_and_grad_of

        model, optimizer = self._model, self._optimizer
        value_and_grad = value_and_grad_of(model, _tuner().default_loss)

        def step(ids: Any, spans: Any) -> tuple[Any, Any]:
            (loss, count), gradient = value_and_grad(model, ids, spans)
            optimizer.update(model, gradient)
            return loss, count

        if not machine.has_accelerator():
            return step
        state = [model.state, optimizer.state, mx.random.state]
        return partial(mx.compile, inputs=state, outputs=state)(step)

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step: a straight rise, then half a cosine down."""
        settings = self.settings
        warmup = min(settings.warmup_steps, settings.steps - 1)
        if step < warmup:
            return settings.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, settings.steps - warmup)
        return settings.learning_rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)

    def _validate(self) -> None:
        import mlx.core as mx

        loss_of = _tuner().default_loss
        self._model.eval()
        total, tokens = 0.0, 0
        for numbers in self._valid_batches:
            self._heed()
            loss, count = loss_of(self._model, *_arrays(self._valid, numbers))
            mx.eval(loss, count)
            total += loss.item() * count.item()
            tokens += count.item()
        self._model.train()
        self._judge(total / tokens)

    def _judge(self, loss: float) -> None:
        progress, patience = self.progress, self.settings.patience
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step, progress.worse = loss, progress.step, 0
            self._best = self._weights()
        else:
            progress.worse += 1
        progress.validations.append((progress.step, loss))
        self._tell(TuneValidation(step=progress.step, loss=loss, best=best))
        if patience and progress.worse >= patience:
            progress.stopped_early = True
            self._tell(
                TuneNote(
                    text=f"Stopped early at step {progress.step}: the validation loss was not "
                    f"lower than at step {progress.best_step} for {patience} validations."
                )
            )

    def _weights(self) -> Weights:
        from mlx.utils import tree_flatten

        return dict(tree_flatten(self._model.trainable_parameters()))

    def _save(self) -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten

        def write(folder: Path) -> None:
            mx.save_safetensors(str(folder / ADAPTER), self._weights())
            mx.save_safetensors(str(folder / BEST), self._best)
            state = dict(tree_flatten(self._optimizer.state))
            mx.save_safetensors(str(folder / OPTIMIZER), state)

        checkpoint.save(self._folder, self.progress, write)
        self._tell(TuneCheckpoint(step=self.progress.step))

    def _restore(self) -> None:
        import mlx.core as mx
        from mlx.utils import tree_unflatten

        found = checkpoint.newest(self._folder)
        if found is None:
            return
        place, progress = found
        if progress.data_sha256 != self.progress.data_sha256:
            raise InvalidInput(
                "The checkpoint is of other examples or settings, so learning cannot go on from "
                "it. Start a new job."
            )
        load: Any = mx.load
        self._model.load_weights(list(load(str(place / ADAPTER)).items()), strict=False)
        self._best = dict(load(str(place / BEST)))
        self._optimizer.state = tree_unflatten(list(load(str(place / OPTIMIZER)).items()))
        mx.eval(self._model.trainable_parameters(), self._optimizer.state, self._best)
        self.progress = progress

    def _recompute(self) -> Callable[[], None]:
        """Let blocks compute activations again in the backward pass; return what undoes it."""
        block = self._model.layers[0]
        kind: Any = type(block)
        before = kind.__call__
        _tuner().grad_checkpoint(block)

        def undo() -> None:
            kind.__call__ = before

        return undo


class _Window:
    """The steps since the last report."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._tokens = 0
        self._seconds = 0.0
        self._began = time.perf_counter()

    def add(self, loss: float, tokens: int) -> None:
        self._losses.append(loss)
        self._tokens += tokens
        now = time.perf_counter()
        self._seconds += now - self._began
        self._began = now

    def restart(self) -> None:
        """Leave out the time since the last step."""
        self._began = time.perf_counter()

    def take(self) -> tuple[float, float]:
        """Return the mean loss and learned tokens a second, and begin anew."""
        taken = sum(self._losses) / len(self._losses), self._tokens / max(self._seconds, 1e-9)
        self._losses, self._tokens, self._seconds = [], 0, 0.0
        return taken


def _tuner() -> Any:
    """Return mlx_lm's trainer, whose own loop can neither be cancelled nor resumed."""
    return importlib.import_module("mlx_lm.tuner.trainer")


def _arrays(examples: Sequence[Tokens], numbers: Sequence[int]) -> tuple[Any, Any]:
    """Return token ids (batch, width) and the spans that are learned, as mlx_lm's loss takes them.

    A span counts targets from 1: target t is token t of the example. So the last is its length - 1;
    mlx_lm's own batches end one further, on padding.
    """
    import mlx.core as mx
    import numpy as np

    rows = [examples[number] for number in numbers]
    longest = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), 1 + -(-(longest - 1) // PAD_TO) * PAD_TO), np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = row.ids
    return mx.array(ids), mx.array([(row.start, len(row.ids) - 1) for row in rows])
