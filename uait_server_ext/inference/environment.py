"""The environment of a model worker: what it needs of ours, and nothing that is a secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from uait_server_ext import errors

ALLOWED = frozenset(
    (
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "PYTHONPATH",
        "PYTHONHOME",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "XDG_CACHE_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
    )
)
ALLOWED_PREFIXES = ("LC_", "COVERAGE_")


def worker_environment(*, threads: int) -> dict[str, str]:
    """Return the environment of a worker: what it needs of ours, no tokens, no passwords."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
    }
    path = [*_own_package(), *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        **({"PYTHONPATH": os.pathsep.join(path)} if path else {}),
        "HF_HUB_OFFLINE": "1",  # what a model needs was fetched before
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        # threads that wait for each other give up the core soon instead of spinning on it
        "GOMP_SPINCOUNT": "1000",
        # a second BLAS thread gains a quarter on an idle machine and loses tenfold on a busy one
        "OPENBLAS_NUM_THREADS": "1",
    }


def _own_package() -> Iterator[str]:
    """Yield the folder that this package was imported from, if it is a checkout."""
    root = Path(errors.__file__).parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        yield str(root)
