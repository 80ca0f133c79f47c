"""Start-up stays light: what an import may load and how long it may take."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

HEAVY = (
    "mlx",
    "dspy",
    "papermill",
    "onnxruntime",
    "onnx",
    "transformers",
    "duckdb",
    "sqlalchemy",
    "usearch",
    "tantivy",
    "tokenizers",
    "pypdfium2",
    "nbformat",
    "nbconvert",
)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("package", ["uait_server_ext", "uait_kernel"])
def test_import_loads_nothing_heavy(package: str) -> None:
    assert not loaded_by(f"import {package}") & set(HEAVY)


def test_the_kernel_side_never_loads_the_server_side() -> None:
    loaded = loaded_by("import uait_kernel, uait_kernel.client, uait_kernel.discovery")
    assert not loaded & {"uait_server_ext", "jupyter_server", "tornado", "numpy", "pydantic"}


def test_the_extension_adds_nothing_heavy_to_a_jupyter_server() -> None:
    bare = loaded_by("import jupyter_server.serverapp")
    added = loaded_by("import jupyter_server.serverapp, uait_server_ext.app") - bare
    assert not added & {*HEAVY, "numpy"}


@pytest.fixture
def compiled() -> dict[str, str]:
    """Let Python keep bytecode, as an installed package has it, and trace nothing."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONDONTWRITEBYTECODE" and not name.startswith("COVERAGE_")
    }


def least_seconds(
    statement: str, environment: dict[str, str], budget: float, before: str = "pass"
) -> float:
    """Return the least CPU seconds of some runs; the machine's other work only ever adds."""
    timed = f"t = time.process_time(); {statement}; print(time.process_time() - t)"
    command = [sys.executable, "-c", f"{before}\nimport time\n{timed}"]
    least = math.inf
    for _ in range(12):
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        least = min(least, float(done.stdout))
        if least <= budget:
            break
    return least


def test_imports_are_within_their_budgets(compiled: dict[str, str]) -> None:
    assert least_seconds("import uait_kernel", compiled, 0.15) <= 0.15
    bare = "import jupyter_server.serverapp"
    assert least_seconds("import uait_server_ext.app", compiled, 0.25, before=bare) <= 0.25
