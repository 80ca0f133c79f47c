"""Which model, adapter and backend a model id names: ``id[+adapter][@backend]``.

Which backend runs a model:

=========== ===============================================================================
``gguf``    MLX where it has Metal or CUDA; else llama.cpp where it is installed; else MLX
``mlx``     MLX
``bert``    ONNX Runtime
``echo``    echo
=========== ===============================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from uait_server_ext.errors import ModelNotFound

from . import machine
from .cache import ModelCache
from .catalogue import Catalogue, CatalogueEntry
from .models import DEFAULT_MODEL
from .registry import Registry

BackendChoice = Literal["auto", "mlx", "llamacpp"]

BACKENDS = {
    "gguf": ("mlx", "llamacpp"),
    "mlx": ("mlx",),
    "bert": ("onnxruntime",),
    "echo": ("echo",),
}
NEEDED_MODULES = {"mlx": ("mlx", "mlx_lm"), "llamacpp": ("xllamacpp",)}


class Choice(NamedTuple):
    """What answers a request; ``adapter`` is a folder."""

    entry: CatalogueEntry
    backend: str
    adapter: Path | None = None

    @property
    def id(self) -> str:
        """What people call it."""
        if self.adapter is None:
            return self.entry.id
        return f"{self.entry.id}+{self.adapter.name.removeprefix('adapter-')}"


class Chooser:
    """Reads model ids against the catalogue, this machine and the configuration."""

    def __init__(
        self, catalogue: Catalogue, cache: ModelCache, *, default: str, backend: BackendChoice
    ) -> None:
        self.configured = backend
        self._catalogue = catalogue
        self._cache = cache
        self._registry = Registry(cache.root)
        self._default = default

    def chat(self, model: str) -> Choice:
        """Return what a request for a chat or a completion names. Raises ``ModelNotFound``."""
        name, _, forced = model.partition("@")
        name, _, adapter = name.partition("+")
        if name == DEFAULT_MODEL:
            name = self._default
        entry = self._catalogue.get(name, "chat")
        able = BACKENDS[entry.format]
        if forced and forced not in able:
            raise ModelNotFound(
                f"{entry.id} does not run on '{forced}'. It runs on: {', '.join(able)}."
            )
        folder = self._adapter(entry, adapter) if adapter else None
        fitting = "mlx" if folder is not None and "mlx" in able else self.backend(entry)
        return Choice(entry, forced or fitting, folder)

    def backend(self, entry: CatalogueEntry) -> str:
        """Return the backend that runs a model here where a request names none."""
        able = BACKENDS[entry.format]
        if len(able) == 1:
            return able[0]
        if self.configured != "auto":
            return self.configured
        if not machine.has_accelerator() and missing(able[1]) is None:
            return able[1]
        return able[0]

    def adapters(self, entry: CatalogueEntry) -> list[str]:
        """Return the names of the adapters that a model has here."""
        return [adapter.name for adapter in self._registry.adapters(entry.id)]

    def draft(self, entry: CatalogueEntry) -> CatalogueEntry | None:
        """Return the smaller model that guesses ahead for this one, if it has one."""
        return self._catalogue.get(entry.draft, "chat") if entry.draft is not None else None

    def _adapter(self, entry: CatalogueEntry, name: str) -> Path:
        adapter = self._registry.adapter(entry.id, name)
        return self._cache.root.absolute() / entry.id / f"adapter-{adapter.name}"


def missing(backend: str) -> str | None:
    """Say which package a backend lacks here, if it does."""
    absent = [name for name in NEEDED_MODULES.get(backend, ()) if not machine.has_module(name)]
    if not absent:
        return None
    return (
        f"The {backend} backend is not installed here (no module {' and '.join(absent)}). On "
        "Linux install the extra 'uait[linux-cpu]'."
    )


def too_large(entry: CatalogueEntry) -> str | None:
    """Say that a model does not fit into this machine's memory, if it does not."""
    memory = machine.memory_bytes()
    if entry.memory_bytes <= memory:
        return None
    return (
        f"{entry.id} needs {entry.memory_bytes / 1e9:.0f} GB of memory and this machine has "
        f"{memory / 1e9:.0f} GB. Choose a smaller model."
    )
