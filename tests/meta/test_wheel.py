"""The built wheel, installed alone in an empty environment (`make pytest` prepares both)."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel() -> Path:
    wheels = sorted((REPOSITORY / "dist").glob("uait-*.whl"))
    assert len(wheels) == 1, "no wheel in dist/: run the tests with `make pytest`"
    return wheels[0]


@pytest.fixture(scope="module")
def commands() -> Path:
    folder = REPOSITORY / f"{os.environ.get('VENV', '.venv')}-wheel" / "bin"
    assert folder.is_dir(), "no environment with the wheel: run the tests with `make pytest`"
    return folder


def run(
    commands: Path, cwd: Path, *words: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "UAIT_URL")}
    environment["PATH"] = f"{commands}:/usr/bin:/bin"
    return subprocess.run(
        [commands / words[0], *words[1:]],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_wheel_holds_product_and_front_end_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.endswith("share/jupyter/labextensions/uait/install.json") for n in names)
    assert any("share/jupyter/labextensions/uait/static/remoteEntry" in n for n in names)
    assert any(n.endswith("jupyter_server_config.d/uait_server_ext.json") for n in names)
    assert "uait_server_ext/inference/catalogue.toml" in names
    unwanted = [n for n in names if n.split("/")[0] in ("tests", "docs", "notebooks", "benchmarks")]
    assert not unwanted
    assert not [n for n in names if n.endswith((".gguf", ".safetensors", ".onnx"))]
    assert wheel.stat().st_size < 2_000_000


def test_server_and_lab_extensions_are_enabled(
    commands: Path, tmp_path: Path, jupyter_folders: dict[str, str]
) -> None:
    server = listing(commands, tmp_path, "jupyter", "server", "extension", "list")
    assert "uait_server_ext enabled" in server
    assert re.search(r"uait_server_ext \d+\.\d+\.\d+ OK", server)
    lab = listing(commands, tmp_path, "jupyter", "labextension", "list")
    assert re.search(r"uait v\d+\.\d+\.\d+ enabled OK", lab)


def listing(commands: Path, cwd: Path, *words: str) -> str:
    done = run(commands, cwd, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def test_a_notebook_runs_against_a_server_from_the_wheel(
    commands: Path, tmp_path: Path, jupyter_folders: dict[str, str], model_cache: Path
) -> None:
    import nbformat

    cells = ["%load_ext uait_kernel", "%ask --chat --model echo from the wheel"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python", "language": "python"}
    nbformat.write(nb, tmp_path / "x.ipynb")
    done = run(commands, tmp_path, "uait", "run", "x.ipynb", "--own-server", "--data-dir", "state")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from the wheel" in done.stdout
    assert "run: completed" in done.stdout
