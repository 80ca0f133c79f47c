"""LoRA adapters on a loaded model: attached, exchanged and taken off within milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.tuner.utils import load_adapters

from uait_server_ext.errors import InvalidInput

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
KINDS = ("lora", "dora")


class Adapters:
    """The adapter that a model carries now, if any."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._plain: list[tuple[str, Any]] = []
        self._current = fingerprint(None)

    def check(self, folder: Path) -> None:
        """Raise ``InvalidInput`` for a folder without an adapter that can be taken off."""
        try:
            kind = json.loads((folder / CONFIG).read_text("utf-8")).get("fine_tune_type", "lora")
        except (OSError, ValueError) as error:
            raise InvalidInput(f"The adapter {folder.name} cannot be read: {error}.") from error
        if kind not in KINDS or not (folder / WEIGHTS).is_file():
            raise InvalidInput(
                f"The adapter {folder.name} is of type '{kind}' and has "
                f"{'its' if (folder / WEIGHTS).is_file() else 'no'} weights. Adapters of type "
                f"{' or '.join(KINDS)} can be used per request; fuse others into a model."
            )

    def attach(self, folder: Path | None) -> None:
        """Let the model carry this adapter and no other. Raises ``InvalidInput``."""
        if fingerprint(folder) == self._current:
            return
        self._detach()
        if folder is None:
            return
        before = dict(self._model.named_modules())
        try:
            load_adapters(self._model, str(folder))
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._remember(before)
            self._detach()
            raise InvalidInput(
                f"The adapter {folder.name} does not fit this model: {error}"
            ) from error
        self._remember(before)
        self._model.eval()  # no dropout
        mx.eval(self._model.parameters())
        self._current = fingerprint(folder)

    def _remember(self, before: dict[str, Any]) -> None:
        """Note the modules that were replaced, which the new ones wrap."""
        self._plain = [
            (name, before[name])
            for name, module in self._model.named_modules()
            if name in before and module is not before[name]
        ]

    def _detach(self) -> None:
        if self._plain:
            self._model.update_modules(tree_unflatten(self._plain))
        self._plain, self._current = [], fingerprint(None)


def fingerprint(folder: Path | None) -> str:
    """Return what tells an adapter from others, and from an earlier one in the same folder."""
    if folder is None:
        return ""
    return f"{folder} {(folder / WEIGHTS).stat().st_mtime_ns}"
