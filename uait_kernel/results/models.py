"""The catalogue's models as they stand on the server's machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from .decode import decoding, known
from .shown import Bundle, Shown

Json = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One model of the catalogue."""

    id: str
    kind: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    size_bytes: int = 0
    memory_bytes: int = 0
    context_tokens: int = 0
    dimension: int | None = None
    state: str = ""
    backend: str | None = None
    default: bool = False
    note: str | None = None


@dataclass(frozen=True, repr=False)
class Models(Shown, Sequence[Model]):
    """The catalogue: a sequence of `Model`."""

    models: tuple[Model, ...]

    @classmethod
    def of(cls, data: Json) -> Models:
        """Read the list of models."""
        with decoding("list of models"):
            return cls(tuple(Model(**known(Model, item)) for item in data["models"]))

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Model]: ...
    def __getitem__(self, index: int | slice) -> Model | Sequence[Model]:
        return self.models[index]

    def __len__(self) -> int:
        return len(self.models)

    def __repr__(self) -> str:
        return f"Models({', '.join(model.id for model in self.models)})"

    @property
    def json(self) -> list[Json]:
        """The models as plain dicts."""
        return [asdict(model) for model in self.models]

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        from uait_kernel.display.models import models_bundle

        return models_bundle(self)
