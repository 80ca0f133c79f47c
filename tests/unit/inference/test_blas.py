"""A real BLAS under MLX: right numbers, several times faster, whichever way it comes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.inference.packages import hide
from uait_server_ext.inference import machine
from uait_server_ext.inference.backends import blas
from uait_server_ext.inference.cache import ModelCache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="MLX uses Accelerate on macOS"),
    pytest.mark.skipif(not machine.has_module("mlx"), reason="MLX is not installed here"),
    pytest.mark.skipif(
        not machine.has_module("scipy_openblas32"), reason="scipy-openblas32 is not installed here"
    ),
]

MEASURE = """
import ctypes, json, sys, time
for library in sys.argv[1:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
import mlx.core as mx
import numpy as np

rng = np.random.default_rng(0)
worst = 0.0
for m, k, n in ((1, 300, 200), (5, 300, 200), (1, 1, 7), (64, 64, 64)):
    a = rng.normal(size=(m, k)).astype(np.float32)
    b = rng.normal(size=(k, n)).astype(np.float32)
    bt = np.ascontiguousarray(b.T)
    for product in (mx.array(a) @ mx.array(b), mx.array(a) @ mx.array(bt).T,
                    mx.array(np.ascontiguousarray(a.T)).T @ mx.array(b)):
        worst = max(worst, float(np.abs(np.array(product) - a @ b).max()))
c = rng.normal(size=(8, 8)) + 1j * rng.normal(size=(8, 8))
square = np.array(mx.array(c.astype(np.complex64)) @ mx.array(c.astype(np.complex64)))
worst = max(worst, float(np.abs(square - c @ c).max()))

x = mx.array(rng.normal(size=(512, 512)).astype(np.float32))
mx.eval(x @ x)
seconds = []
for _ in range(3):
    began = time.process_time()
    mx.eval(x @ x)
    seconds.append(time.process_time() - began)
print(json.dumps({"worst": worst, "seconds": min(seconds)}))
"""


def measure(*libraries: Path) -> dict[str, float]:
    """Multiply in MLX with these libraries loaded first; return the worst error and the time."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, libraries)],
        capture_output=True,
        check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def openblas() -> Path:
    found = blas._openblas()
    assert found is not None
    return found


def test_the_shim_is_right_and_fast(cache: ModelCache) -> None:
    shim = blas.build_shim(cache)
    if shim is None:
        pytest.skip("no C compiler here")
    check(measure(openblas(), shim))
    assert blas.build_shim(cache) == shim


def test_the_renamed_copy_is_right_and_fast(cache: ModelCache) -> None:
    renamed = blas.rename_symbols(cache, openblas())
    if renamed is None:
        pytest.skip("patchelf is not installed here")
    check(measure(renamed))


def check(fast: dict[str, float]) -> None:
    assert fast["worst"] < 1e-3
    assert fast["seconds"] < measure()["seconds"] / 3


def test_without_a_compiler_the_renamed_copy_serves(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    compilers = {"cc", "gcc", "clang"}
    monkeypatch.setattr(shutil, "which", lambda name: None if name in compilers else which(name))
    candidates = list(blas._candidates(cache))
    assert [path.parent.name.split("-")[0] for path in candidates[0]] == ["renamed"]


def test_a_compiler_that_fails_is_as_good_as_none(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "SHIM_SOURCE", Path(__file__))
    assert blas.build_shim(cache) is None


def test_with_nothing_at_all_it_says_that_it_is_slow(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(cache: ModelCache) -> Any:
        yield [cache.root / "not-a-library.so"]

    monkeypatch.setattr(blas, "_candidates", broken)
    assert "install scipy-openblas32" in (blas.load_fast_blas(cache) or "")


def test_without_openblas_a_system_library_is_looked_for(
    cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "scipy_openblas32")
    monkeypatch.setattr("ctypes.util.find_library", {"blis": "libblis.so.4"}.get)
    assert list(blas._candidates(cache)) == [[Path("libblis.so.4")]]
