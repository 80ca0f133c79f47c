"""The models that UAIT knows: where each comes from, what it needs, and which one is the default.

``catalogue.toml`` beside this module is the shipped list; a further file of the same form adds to
it or replaces entries by id. What people import on this machine is in the ``registry`` and is seen
at once, also by servers that run.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uait_server_ext.errors import InvalidInput, ModelNotFound
from uait_server_ext.inference.models import DEFAULT_MODEL, ModelKind

if TYPE_CHECKING:
    from .registry import Registry

ModelFormat = Literal["gguf", "mlx", "bert", "echo"]
Capability = Literal["chat", "completion", "tools", "vision", "embedding", "rerank"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

SHIPPED = Path(__file__).with_name("catalogue.toml")


class PackageFile(BaseModel):
    """One file of a model inside a registry package."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    member: str = Field(description="Path inside the wheel.")
    name: FileName = Field(description="File name in the model cache.")
    size: int = Field(ge=0)
    sha256: Digest


class LocalFile(BaseModel):
    """One file of an imported model, as it is in the model cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: FileName
    size: int = Field(ge=0)
    sha256: Digest


class Imported(BaseModel):
    """What was imported on this machine: the files, and where they were."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str = Field(description="The folder or file that was imported.")
    files: tuple[LocalFile, ...] = Field(min_length=1)


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
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="Which of an encoder's vectors stands for the text."
    )
    capabilities: tuple[Capability, ...] = Field(
        (), description="What it is good for; where nothing is said, its kind."
    )
    draft: ModelId | None = Field(
        None, description="A smaller model with the same tokenizer, for speculative decoding."
    )
    kv_bits: Literal[4, 8] | None = Field(
        None, description="Bits of a quantised attention cache; none: as the model computes."
    )
    package: Package | None = None
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(
        None, pattern=r"^[\w./-]+$", description="Of the hub repository, if not its newest."
    )
    imported: Imported | None = None
    delay_seconds: float = Field(
        0.0,
        ge=0.0,
        description="Pause before each word of an echo model, so that it can be stopped.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_capabilities(cls, given: object) -> object:
        if isinstance(given, dict) and not given.get("capabilities") and "kind" in given:
            return {**given, "capabilities": (given["kind"],)}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> CatalogueEntry:
        sources = ("package", "hub", "imported")
        given = [name for name in sources if getattr(self, name) is not None]
        wanted = {
            "gguf": ("package", "imported"),
            "bert": ("package", "imported"),
            "mlx": ("hub", "imported"),
            "echo": (),
        }[self.format]
        if len(given) != min(1, len(wanted)) or not set(given) <= set(wanted):
            raise ValueError(
                f"a {self.format} model needs {' or '.join(wanted) or 'no'} source, not {given}"
            )
        if (self.kind == "embedding") != (self.dimension is not None):
            raise ValueError("exactly the embedding models have a dimension")
        if self.files and self.size_bytes != sum(file.size for file in self.files):
            raise ValueError("size_bytes is not the sum of the files' sizes")
        return self

    @property
    def files(self) -> tuple[PackageFile, ...] | tuple[LocalFile, ...]:
        """The files in the model cache; none of a hub model, which is in the hub's cache."""
        if self.package is not None:
            return self.package.files
        return self.imported.files if self.imported is not None else ()

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file in the model cache, by name."""
        return {file.name: file.sha256 for file in self.files}

    @property
    def digest(self) -> str | None:
        """One SHA-256 over all files; none where the source alone vouches for them."""
        if not self.files:
            return None
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def source(self) -> str:
        """Where the files come from, as people read it."""
        if self.package is not None:
            return f"package:{self.package.requirement}"
        if self.imported is not None:
            return f"{'file' if self.format == 'gguf' else 'folder'}:{self.imported.path}"
        return f"hub:{self.hub}" if self.hub is not None else "built-in"


class Catalogue:
    """All known models by id."""

    def __init__(self, entries: Iterable[CatalogueEntry], registry: Registry | None = None) -> None:
        self._shipped = {entry.id: entry for entry in entries}
        self._registry = registry

    @classmethod
    def load(cls, *extra: Path, registry: Registry | None = None) -> Catalogue:
        """Read the shipped list, then each ``extra`` file; later entries replace earlier ones.

        The models of ``registry`` come last and are read again when they have changed. Raises
        ``InvalidInput`` naming the file and the entry that is wrong.
        """
        return cls((entry for path in (SHIPPED, *extra) for entry in _read(path)), registry)

    @property
    def _entries(self) -> dict[str, CatalogueEntry]:
        if self._registry is None:
            return self._shipped
        # what is shipped wins: an import under the same id was refused, or came before the release
        return {entry.id: entry for entry in self._registry.models()} | self._shipped

    @property
    def entries(self) -> list[CatalogueEntry]:
        """All models, the shipped ones first, in the order of the lists they came from."""
        return list((self._shipped | self._entries).values())

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
