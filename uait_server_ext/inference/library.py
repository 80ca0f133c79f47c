"""The models of this machine as a collection: import, remove, and adapters.

What comes in is checked first, copied into the model cache with its digests, and named in the
registry last: a kill leaves files that nobody refers to, which the next import replaces, and never
a model that is half there.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from uait_server_ext.errors import Conflict, InvalidInput, ModelNotFound, ModelUnavailable
from uait_server_ext.paths import named_path

from .cache import ADAPTER_PREFIX, COPY_BYTES, SOURCE, ModelCache, OnProgress
from .catalogue import Catalogue, CatalogueEntry, Imported, LocalFile
from .models import PullProgress
from .registry import Adapter, Registry, check_adapter_name

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json")
HUB_SNAPSHOT = re.compile(r"models--[^/]+?--([^/]+)/snapshots/[^/]+$")
PROGRESS_BYTES = 32 << 20  # between two words of progress


@dataclass(frozen=True)
class Wanted:
    """What to import, and what to say of it where its files do not."""

    path: Path
    id: str | None = None
    licence: str | None = None
    description: str | None = None
    context_tokens: int | None = None


class Library:
    """Imports into and removals from one model cache."""

    def __init__(self, cache: ModelCache, catalogue: Catalogue, registry: Registry) -> None:
        self.cache = cache
        self.catalogue = catalogue
        self.registry = registry

    @classmethod
    def open(cls, root: Path) -> Library:
        """Return the library of a model cache, with the shipped catalogue."""
        registry = Registry(root)
        return cls(ModelCache(root), Catalogue.load(registry=registry), registry)

    def import_model(self, wanted: Wanted, progress: OnProgress | None = None) -> CatalogueEntry:
        """Copy a model folder or a GGUF file into the cache and name it in the catalogue.

        ``progress`` may raise to give up. Blocks: call it in a thread.

        Raises:
            InvalidInput: it is no model that can be run here; says why.
            Conflict: a model of that id is known.
            ModelUnavailable: there is not enough room on the disk.
        """
        path = named_path(wanted.path, Path())
        model = wanted.id or model_id_of(path)
        if any(entry.id == model for entry in self.catalogue.entries):
            raise Conflict(
                f"The catalogue has a model '{model}' already. Choose another id with --id, or "
                f"remove that one."
            )
        names, facts = _inspect(path)
        size = sum(file.stat().st_size for file in names.values())
        self._check_room(path, size)
        licence = facts.pop("licence")
        draft = {  # checked before anything is copied
            "id": model,
            "description": wanted.description or f"Imported from {path.name}.",
            "licence": wanted.licence or licence,
            **facts,
            **({"context_tokens": wanted.context_tokens} if wanted.context_tokens else {}),
        }
        _entry(draft, path, [LocalFile(name=n, size=0, sha256="0" * 64) for n in names])
        if (self.cache.root / model / SOURCE).exists():
            # files of a model that nobody knows: of an import that was broken off
            self.cache.remove(_entry(draft, path, [_placeholder()]), SOURCE)
        tell = _teller(model, size, progress)
        kept = self.cache.keep(model, SOURCE, lambda target: _copy(names, target, tell))
        files = [LocalFile(name=n, size=s, sha256=d) for n, (s, d) in sorted(kept.items())]
        entry = _entry(draft, path, files)
        self.registry.add_model(entry)
        tell("done", size)
        return entry

    def remove(self, model: str) -> int:
        """Delete a model's files, or an adapter's (``base+name``); return the bytes freed.

        A model of the shipped catalogue stays in it and can be pulled again; an imported one is
        forgotten.

        Raises:
            ModelNotFound: nothing is known by that id.
            Conflict: it is in use, or an imported model still has adapters.
        """
        base, plus, name = model.partition("+")
        entry = self.catalogue.get(base)
        if plus:
            self.registry.adapter(base, name)
            freed = self.cache.remove(entry, f"{ADAPTER_PREFIX}{name}")
            self.registry.remove_adapter(base, name)
            return freed
        if entry.imported is not None and (adapters := self.registry.adapters(base)):
            raise Conflict(
                f"{base} has adapters that would be of no use without it: "
                f"{', '.join(adapter.id for adapter in adapters)}. Remove them first."
            )
        freed = self.cache.remove(entry)
        if entry.imported is not None:
            self.registry.remove_model(base)
        return freed

    def register_adapter(
        self, base: str, name: str, folder: Path, facts: Mapping[str, Any]
    ) -> Adapter:
        """Copy a LoRA adapter into the cache and name it; from then on ``base+name`` uses it.

        ``folder`` has ``adapters.safetensors`` and ``adapter_config.json``, as mlx-lm writes them.

        Raises:
            ModelNotFound: the base is not in the catalogue.
            InvalidInput: the name cannot be one, or the folder holds no adapter.
            Conflict: the model has an adapter of that name.
        """
        from .model_folder import check_safetensors

        entry = self.catalogue.get(base, "chat")
        check_adapter_name(name)
        names = {file: folder / file for file in ADAPTER_FILES}
        if missing := [file for file, path in names.items() if not path.is_file()]:
            raise InvalidInput(f"{folder} holds no adapter: it lacks {' and '.join(missing)}.")
        check_safetensors(names[ADAPTER_FILES[0]])
        form = f"{ADAPTER_PREFIX}{name}"
        with contextlib.suppress(ModelNotFound):
            self.registry.adapter(base, name)
            raise Conflict(f"{base} has an adapter '{name}' already. Choose another name.")
        if (self.cache.root / base / form).exists():
            self.cache.remove(entry, form)
        kept = self.cache.keep(base, form, lambda target: _copy(names, target, lambda *_: None))
        lines = "".join(f"{file} {digest}\n" for file, (_, digest) in sorted(kept.items()))
        return self.registry.add_adapter(
            base,
            name,
            digest=hashlib.sha256(lines.encode()).hexdigest(),
            size_bytes=sum(size for size, _ in kept.values()),
            facts=facts,
        )

    def adapter_folder(self, base: str, name: str) -> Path:
        """Return the verified folder of an adapter, as ``mlx_lm`` loads it.

        Raises:
            ModelNotFound: the model has none of that name.
            ModelUnavailable: its files are damaged.
        """
        self.registry.adapter(base, name)
        form = f"{ADAPTER_PREFIX}{name}"
        if not self.cache.intact(base, form):
            raise ModelUnavailable(
                f"The files of the adapter {base}+{name} are damaged or gone. Remove it with "
                f"`uait models remove {base}+{name}` and register it again."
            )
        return self.cache.root / base / form

    def _check_room(self, path: Path, size: int) -> None:
        free = shutil.disk_usage(self.cache.root).free
        if free < size:
            raise ModelUnavailable(
                f"{path.name} needs {size / 1e6:,.0f} MB and {self.cache.root} has "
                f"{free / 1e6:,.0f} MB free. Make room and import it again."
            )


def model_id_of(path: Path) -> str:
    """Return a catalogue id made of a file's or folder's name.

    Raises:
        InvalidInput: nothing is left of the name that could be one.
    """
    in_hub = HUB_SNAPSHOT.search(path.as_posix())
    name = in_hub.group(1) if in_hub else path.name.removesuffix(".gguf")
    made = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:80]
    if not made:
        raise InvalidInput(f"'{path.name}' makes no model id. Give one with --id.")
    return made


def _inspect(path: Path) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the files to take, by their name in the cache, and what the entry says of them."""
    if path.is_dir():
        from .model_folder import inspect_folder

        facts = inspect_folder(path)
        fields = {name: value for name, value in vars(facts).items() if name != "files"}
        return {file.name: file for file in facts.files}, fields
    if not path.is_file():
        raise InvalidInput(f"{path} is neither a model folder nor a GGUF file.")
    from .gguf_convert import SOURCE_FILE, inspect_gguf

    return {SOURCE_FILE: path}, inspect_gguf(path)


def _entry(fields: Mapping[str, Any], path: Path, files: Sequence[LocalFile]) -> CatalogueEntry:
    size = sum(file.size for file in files)
    imported = Imported(path=str(path), files=tuple(files))
    try:
        return CatalogueEntry.model_validate({**fields, "size_bytes": size, "imported": imported})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{path} cannot be imported: {where}: {first['msg']}.") from error


def _placeholder() -> LocalFile:
    return LocalFile(name="model", size=0, sha256="0" * 64)


def _copy(names: Mapping[str, Path], target: Path, tell: Callable[[str, int], None]) -> None:
    done = told = 0
    for name, path in names.items():
        with path.open("rb") as source, (target / name).open("wb") as copy:
            while block := source.read(COPY_BYTES):
                copy.write(block)
                done += len(block)
                if done - told >= PROGRESS_BYTES:
                    tell("copying", done)
                    told = done
    tell("verifying", done)


def _teller(model: str, total: int, progress: OnProgress | None) -> Callable[[str, int], None]:
    def tell(stage: str, done: int) -> None:
        if progress is not None:
            fields = {"stage": stage, "done_bytes": done, "total_bytes": total}
            progress(PullProgress.model_validate({"model": model, **fields}))

    return tell
