"""Give MLX a fast BLAS on a CPU, before it is imported.

The Linux wheel of MLX brings the reference BLAS, which reads a prompt twelve times slower than
OpenBLAS does. A library that is loaded globally before MLX takes its place. In order of speed:

=========== ==============================================================================
shim        OpenBLAS from PyPI under its prefixed names and our 40-line shim, built with cc
renamed     a copy of that OpenBLAS with its symbols renamed by patchelf; no compiler needed
system      the system's libopenblas or libblis
=========== ==============================================================================
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from uait_server_ext.inference.cache import ModelCache

SHIM_SOURCE = Path(__file__).with_name("blas_shim.c")
SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
PREFIX = "scipy_"
BUILD_SECONDS = 60
NAME = "blas"
LIBRARY = "libuait-blas.so"

SLOW = (
    "MLX runs on the CPU with the reference BLAS and is about ten times slower than it could be: "
    "install scipy-openblas32 and patchelf (extra 'uait[linux-cpu]')."
)


def load_fast_blas(cache: ModelCache) -> str | None:
    """Load the fastest BLAS there is; return a sentence for people when there is none.

    Must run before ``import mlx.core``. Does nothing on macOS, where MLX uses Accelerate.
    """
    if sys.platform != "linux":
        return None
    for libraries in _candidates(cache):
        try:
            for library in libraries:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:  # built for another machine, or not a library: the next one
            continue
        return None
    return SLOW


def _candidates(cache: ModelCache) -> Iterator[list[Path]]:
    """Yield what to load together, the fastest first; each is made when its turn comes."""
    openblas = _openblas()
    if openblas is not None:
        if (shim := build_shim(cache)) is not None:
            yield [openblas, shim]
        if (renamed := rename_symbols(cache, openblas)) is not None:
            yield [renamed]
    for name in ("openblas", "blis"):
        if (system := ctypes.util.find_library(name)) is not None:
            yield [Path(system)]


def build_shim(cache: ModelCache) -> Path | None:
    """Compile the shim into the cache; None without a working C compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    version = hashlib.sha256(SHIM_SOURCE.read_bytes()).hexdigest()[:12]

    def compile_shim(target: Path) -> None:
        flags = ["-O2", "-shared", "-fPIC", "-o", str(target / LIBRARY)]
        _run([compiler, *flags, str(SHIM_SOURCE)])

    try:
        return cache.made(NAME, f"shim-{version}", compile_shim) / LIBRARY
    except (OSError, subprocess.SubprocessError):
        return None


def rename_symbols(cache: ModelCache, openblas: Path) -> Path | None:
    """Copy OpenBLAS into the cache under the names that MLX calls; None without patchelf."""
    patchelf = _script("patchelf")
    if patchelf is None:
        return None
    size = openblas.stat().st_size

    def rename(target: Path) -> None:
        shutil.copyfile(openblas, target / LIBRARY)
        names = target / "names"
        names.write_text("".join(f"{PREFIX}{name} {name}\n" for name in SYMBOLS), "ascii")
        _run([patchelf, "--rename-dynamic-symbols", str(names), str(target / LIBRARY)])

    try:
        return cache.made(NAME, f"renamed-{size}", rename) / LIBRARY
    except (OSError, subprocess.SubprocessError):
        return None


def _openblas() -> Path | None:
    found = importlib.util.find_spec("scipy_openblas32")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("lib/libscipy_openblas*.so"), None)


def _script(name: str) -> str | None:
    """Find a program beside this interpreter or on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
