"""What people add to the models on this machine: imported models, and LoRA adapters of any model.

One JSON file in the model cache, ``.registry.json``, replaced as a whole under a lock, so that any
number of servers and commands may change it and none reads a half. The files themselves are in the
cache: ``<model>/source`` and ``<model>/adapter-<name>``.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from uait_server_ext.errors import Conflict, InvalidInput, ModelNotFound
from uait_server_ext.storage.files import write_atomic

from .catalogue import CatalogueEntry, Digest, ModelId

ADAPTER_NAME = r"^[a-z0-9][a-z0-9._-]{0,59}$"
AdapterName = Annotated[str, Field(pattern=ADAPTER_NAME)]
REGISTRY = ".registry.json"
VERSION = 1


class Adapter(BaseModel):
    """A LoRA adapter of one model; it is asked for as ``base+name``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: ModelId
    name: AdapterName
    digest: Digest
    size_bytes: int = Field(ge=0)
    created_at: float = Field(description="Seconds since 1970.")
    facts: dict[str, Any] = Field(
        default_factory=dict, description="How it was made: data, steps, losses, scores."
    )

    @property
    def id(self) -> str:
        """What a request names: ``base+name``."""
        return f"{self.base}+{self.name}"


class _Content(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid")
    version: int = VERSION
    models: dict[str, CatalogueEntry] = Field(default_factory=dict)
    adapters: dict[str, Adapter] = Field(default_factory=dict)


class Registry:
    """Imported models and adapters of one model cache."""

    def __init__(self, root: Path) -> None:
        self._path = root / REGISTRY
        self._read: tuple[tuple[int, int, int], _Content] | None = None

    def models(self) -> list[CatalogueEntry]:
        """Return the imported models, in the order of their import."""
        return list(self._content().models.values())

    def adapters(self, base: str | None = None) -> list[Adapter]:
        """Return the adapters of a model, or all."""
        known = self._content().adapters.values()
        return [adapter for adapter in known if base in (None, adapter.base)]

    def adapter(self, base: str, name: str) -> Adapter:
        """Return one adapter.

        Raises:
            ModelNotFound: the model has none of that name.
        """
        found = self._content().adapters.get(f"{base}+{name}")
        if found is None:
            known = [adapter.name for adapter in self.adapters(base)]
            raise ModelNotFound(
                f"{base} has no adapter '{name}' here. "
                + (
                    f"It has: {', '.join(known)}."
                    if known
                    else "It has none; fine-tuning makes one."
                ),
                known=known,
            )
        return found

    def add_model(self, entry: CatalogueEntry) -> None:
        """Note an imported model, or replace the one with its id."""
        with self._changing() as content:
            content.models[entry.id] = entry

    def remove_model(self, model: str) -> None:
        """Forget an imported model; one that is not there is no error."""
        with self._changing() as content:
            content.models.pop(model, None)

    def add_adapter(
        self, base: str, name: str, *, digest: str, size_bytes: int, facts: Mapping[str, Any]
    ) -> Adapter:
        """Note an adapter whose files are in the cache.

        Raises:
            InvalidInput: the name cannot be one.
            Conflict: the model has an adapter of that name.
        """
        check_adapter_name(name)
        adapter = Adapter(
            base=base,
            name=name,
            digest=digest,
            size_bytes=size_bytes,
            created_at=time.time(),
            facts=dict(facts),
        )
        with self._changing() as content:
            if adapter.id in content.adapters:
                raise Conflict(
                    f"{base} has an adapter '{name}' already. Choose another name, or remove it "
                    f"with `uait models remove {adapter.id}`."
                )
            content.adapters[adapter.id] = adapter
        return adapter

    def remove_adapter(self, base: str, name: str) -> None:
        """Forget an adapter; one that is not there is no error."""
        with self._changing() as content:
            content.adapters.pop(f"{base}+{name}", None)

    def _content(self) -> _Content:
        """Return what the file holds, read again when it was replaced."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return _Content()
        state = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if self._read is None or self._read[0] != state:
            self._read = state, self._load()
        return self._read[1]

    def _load(self) -> _Content:
        try:
            content = _Content.model_validate(json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return _Content()
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"The list of imported models {self._path} cannot be read: {error}. Mend it, or "
                "move it away and import the models again."
            ) from error
        if content.version != VERSION:
            raise InvalidInput(
                f"{self._path} was written by a newer UAIT (version {content.version}). Update."
            )
        return content

    @contextmanager
    def _changing(self) -> Iterator[_Content]:
        """Give the present content to change; write it as a whole when that went well."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_name(f"{REGISTRY}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._load()
            yield content
            write_atomic(self._path, content.model_dump_json(indent=1).encode())


def check_adapter_name(name: str) -> None:
    """Raise ``InvalidInput`` where this cannot name an adapter."""
    if not re.fullmatch(ADAPTER_NAME, name):
        raise InvalidInput(
            f"'{name}' cannot name an adapter: use up to 60 small letters, digits, dots, hyphens "
            "and underscores, with a letter or digit first."
        )
