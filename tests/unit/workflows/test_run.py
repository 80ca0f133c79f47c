"""Runs: a process of their own, the notebook kept, an exit code that tells the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import pytest

from uait_server_ext.workflows.models import CellOutput, RunFinished, RunJob
from uait_server_ext.workflows.run import execute, run_folder

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _folders(jupyter_folders: dict[str, str]) -> None:
    """Keep Jupyter's files of these runs in temporary folders."""


def notebook(folder: Path, *cells: str, parameters: str | None = None) -> Path:
    nb = nbformat.v4.new_notebook()
    if parameters is not None:
        cell = nbformat.v4.new_code_cell(parameters)
        cell.metadata["tags"] = ["parameters"]
        nb.cells.append(cell)
    nb.cells += [nbformat.v4.new_code_cell(source) for source in cells]
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python"}
    path = folder / "a notebook – ü.ipynb"
    nbformat.write(nb, path)
    return path


def run(path: Path, **options: Any) -> tuple[RunFinished, list[str], Path]:
    output = path.parent / "out" / path.name
    shown: list[str] = []

    def follow(event: Any) -> None:
        if isinstance(event, CellOutput):
            shown.append(event.text)

    job = RunJob(notebook=path, output=output, working_dir=path.parent, **options)
    return execute(job, environment={}, follow=follow), shown, output


def test_a_run_completes_shows_its_output_and_keeps_notebook_and_html(tmp_path: Path) -> None:
    path = notebook(
        tmp_path, "print(f'{name} = {value * 2}')", "value", parameters="name = 'x'\nvalue = 1"
    )
    html = tmp_path / "out.html"
    finished, shown, output = run(path, parameters={"value": 21}, html=html)
    assert finished.state == "completed"
    assert shown == ["x = 42", "21"]
    assert json.loads(output.read_text())["metadata"]["papermill"]["exception"] is None
    page = html.read_text()
    assert "x = 42" in page
    assert "<script src=" not in page


def test_a_failed_cell_fails_the_run_and_the_notebook_holds_the_error(tmp_path: Path) -> None:
    finished, shown, output = run(notebook(tmp_path, "print('before')", "1 / 0", "print('after')"))
    assert finished.state == "failed"
    assert finished.cell == 1
    assert finished.error == "ZeroDivisionError: division by zero"
    assert shown == ["before"]
    assert "ZeroDivisionError" in output.read_text()


def test_a_dead_kernel_is_reported_as_what_it_is(tmp_path: Path) -> None:
    finished, _, output = run(
        notebook(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    )
    assert finished.state == "kernel-died"
    assert output.exists()


def test_a_cell_over_its_time_fails(tmp_path: Path) -> None:
    finished, _, _ = run(notebook(tmp_path, "import time; time.sleep(60)"), cell_timeout=1)
    assert finished.state == "failed"


def test_an_unknown_parameter_is_rejected_before_anything_runs(tmp_path: Path) -> None:
    path = notebook(tmp_path, "print(value)", parameters="value = 1")
    finished, shown, output = run(path, parameters={"valu": 2})
    assert finished.state == "rejected"
    assert (
        finished.error == "The notebook has no parameter valu. It has: value. Did you mean value?"
    )
    assert not shown
    assert not output.exists()


def test_a_file_that_is_no_notebook_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text("not json")
    finished, _, _ = run(path)
    assert finished.state == "rejected"
    assert "is not a notebook" in (finished.error or "")


def test_a_vanished_worker_is_a_failed_run(tmp_path: Path) -> None:
    path = notebook(
        tmp_path,
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time; time.sleep(60)",
    )
    finished, _, _ = run(path)
    assert finished.state == "failed"
    assert "without a result" in (finished.error or "")


def test_an_interrupt_ends_worker_and_kernel_within_seconds(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = notebook(
        tmp_path,
        "import os, pathlib, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)",
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from uait_server_ext.workflows.models import RunJob\n"
        "from uait_server_ext.workflows.run import execute\n"
        f"path = Path({str(path)!r})\n"
        "job = RunJob(notebook=path, output=path.parent / 'o.ipynb', working_dir=path.parent)\n"
        "execute(job, environment={}, follow=print)\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(pid_file.read_text())
    began = time.monotonic()
    runner.send_signal(signal.SIGINT)
    assert runner.wait(10) != 0
    while time.monotonic() - began < 5:
        try:
            os.kill(kernel, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the kernel outlived the run")


def test_every_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    folders: set[Path] = set()
    lock = threading.Lock()

    def take() -> None:
        folder = run_folder(tmp_path, Path("x.ipynb"), now)
        with lock:
            folders.add(folder)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 8
    assert tmp_path / "x-20260102-030405" in folders
