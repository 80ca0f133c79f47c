"""Loading the package is cheap: what it must not import, and how long it may take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    "mlx",
    "dspy",
    "papermill",
    "onnxruntime",
    "transformers",
    "duckdb",
    "sqlalchemy",
    "httpx",
    "jupyter_server",
    "numpy",
    "pydantic",
    "uait_server_ext",
    "nh3",
    "markdown_it",
    "http.client",
    "ssl",
    "IPython",
]
IMPORT = "import uait_kernel"
LOAD = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
"""
MEASURE = """
import json, sys, time
{before}
known = set(sys.modules)
began = time.process_time()
{action}
spent = time.process_time() - began
print(json.dumps([spent, sorted(set(sys.modules) - known)]))
"""


def measure(before: str, action: str) -> tuple[float, set[str]]:
    """Return the least CPU seconds of three runs in new processes, and the modules loaded."""
    code = MEASURE.format(before=before, action=action)
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        )
        for _ in range(3)
    ]
    return min(spent for spent, _ in runs), set(runs[0][1])


def test_importing_the_package() -> None:
    spent, modules = measure("", IMPORT)
    assert spent < 0.15
    assert not modules & set(HEAVY)


def test_loading_the_extension() -> None:
    spent, modules = measure(LOAD, "shell.run_line_magic('load_ext', 'uait_kernel')")
    assert spent < 0.05
    assert not modules & (set(HEAVY) - {"IPython"})
    assert "uait_kernel.magics" in modules


def test_a_request_loads_nothing_heavy() -> None:
    action = """
import uait_kernel, uait_kernel.errors
try:
    uait_kernel.connect("http://127.0.0.1:9/", "t")
except uait_kernel.errors.NoAnswer:
    pass
"""
    _, modules = measure("", action)
    assert not modules & (set(HEAVY) - {"http.client", "ssl"})


@pytest.mark.parametrize(
    "name", ["ask", "search", "connect", "Answer", "Client", "UaitClientError"]
)
def test_public_names_are_there_when_asked_for(name: str) -> None:
    import uait_kernel

    assert name in dir(uait_kernel)
    assert getattr(uait_kernel, name).__name__ == name


def test_every_public_name_resolves_and_no_other() -> None:
    import uait_kernel

    for name in uait_kernel.__all__:
        assert getattr(uait_kernel, name) is not None
    with pytest.raises(AttributeError):
        uait_kernel.nothing_of_that_name  # noqa: B018
