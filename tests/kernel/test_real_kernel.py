"""The magics in real kernels: one that a person watches, and those of batch runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

if TYPE_CHECKING:
    from tests.kernel.conftest import ProtocolServer

pytestmark = pytest.mark.slow

MIME = "application/vnd.uait.answer+json"
LOAD = "%load_ext uait_kernel"


@pytest.fixture(autouse=True)
def kernel_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels find this checkout, and keep their files in the test's folder."""
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(root), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def notebook(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def execute(*cells: str, **options: Any) -> Any:
    """Run cells as nbclient does and return the notebook, also after an error."""
    executed = notebook(*cells)
    NotebookClient(executed, timeout=60, kernel_name="python3", **options).execute()
    nbformat.validate(executed)
    return executed


def test_a_batch_run_has_one_output_an_answer(connected: ProtocolServer) -> None:
    connected.delay = 0.15
    executed = execute(
        LOAD,
        "topic = 'installing'",
        "%%ask --to answer\nWhat about {{topic}}?",
        "print(answer.citations[0].path, type(_).__name__, _ == answer)",
        "answer",
        "%ask what about {{topic}}?;",
        "%models",
    )
    outputs = [cell.outputs for cell in executed.cells]
    assert outputs[0] == outputs[1] == outputs[5] == []
    (shown,) = outputs[2]
    assert shown.output_type == "display_data"
    assert set(shown.data) == {"text/html", "text/plain", MIME}
    assert shown.metadata["uait"]["generated"] is True
    assert shown.metadata["uait"]["model"] == "echo"
    assert shown.data[MIME]["citations"][0]["path"] == "docs/install.md"
    assert outputs[3][0].text == "docs/install.md Answer True\n"
    (again,) = outputs[4]
    assert again.output_type == "execute_result"
    assert again.data == shown.data
    assert again.metadata == shown.metadata
    (models,) = outputs[6]
    assert models.output_type == "execute_result"
    assert "echo" in models.data["text/html"]


def test_a_batch_run_ends_with_the_error_in_the_notebook(connected: ProtocolServer) -> None:
    cells = notebook(LOAD, "%ask -c missing what?", "print('not reached')")
    client = NotebookClient(cells, timeout=60, kernel_name="python3")
    with pytest.raises(CellExecutionError, match="There is no collection 'missing'"):
        client.execute()
    (error,) = cells.cells[1].outputs
    assert (error.output_type, error.ename) == ("error", "NotFound")
    assert error.evalue == "There is no collection 'missing'. Make it with an ingest."
    assert error.traceback == [f"NotFound: {error.evalue}"]
    assert cells.cells[2].outputs == []


def test_papermill_exits_with_1_and_says_why(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UAIT_URL", "http://127.0.0.1:9/")
    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    nbformat.write(notebook(LOAD, "%ask anything"), source)
    run = subprocess.run(
        [sys.executable, "-m", "papermill", str(source), str(target), "-k", "python3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 1
    assert "NoAnswer: No server answers at http://127.0.0.1:9/ (from UAIT_URL)." in run.stderr
    assert "Start one with `uait lab`" in run.stderr
    executed = nbformat.read(target, as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert [output.get("ename") for output in outputs] == ["NoAnswer"]


class WatchedKernel:
    """A kernel whose front end lets it ask its user, as JupyterLab does."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    @property
    def pid(self) -> int:
        """The kernel's process."""
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    def run(self, code: str, during: Callable[[], None] | None = None) -> list[dict[str, Any]]:
        """Run a cell and return the messages it published."""
        messages: list[dict[str, Any]] = []
        thread = threading.Thread(target=during) if during else None
        if thread:
            thread.start()
        self.client.execute_interactive(
            code, allow_stdin=True, timeout=60, output_hook=messages.append
        )
        if thread:
            thread.join()
        kinds = ("display_data", "update_display_data", "execute_result", "error", "stream")
        return [message for message in messages if message["header"]["msg_type"] in kinds]


@pytest.fixture
def watched(connected: ProtocolServer) -> Iterator[WatchedKernel]:
    """Run a kernel with the extension loaded."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        kernel = WatchedKernel(manager, client)
        assert kernel.run(LOAD) == []
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["header"]["msg_type"] for message in messages]


def test_a_person_sees_one_display_grow(watched: WatchedKernel, connected: ProtocolServer) -> None:
    connected.delay = 0.05
    words = " ".join(f"word{number}" for number in range(50))
    began = time.monotonic()
    messages = watched.run(f"%ask --chat {words}")
    spent = time.monotonic() - began
    assert kinds(messages)[0] == "display_data"
    assert set(kinds(messages)[1:]) == {"update_display_data"}
    assert 3 <= len(messages) <= 3 + spent / 0.1
    ids = {message["content"]["transient"]["display_id"] for message in messages}
    assert len(ids) == 1
    texts = [message["content"]["data"]["text/plain"] for message in messages]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == words
    assert messages[-1]["content"]["metadata"]["uait"]["state"] == "done"


def test_a_persons_stop_cancels_and_keeps_the_part(
    watched: WatchedKernel, connected: ProtocolServer
) -> None:
    connected.pause = threading.Event()

    def stop() -> None:
        connected.paused.wait(10)
        time.sleep(0.5)
        os.kill(watched.pid, signal.SIGINT)

    messages = watched.run("%ask --chat --to part one two three four\nprint('on')", during=stop)
    assert connected.cancelled.wait(2.0)
    assert messages[-1]["content"]["ename"] == "KeyboardInterrupt"
    assert messages[-1]["content"]["traceback"] == ["KeyboardInterrupt: the answer was stopped."]
    last_shown = [m for m in messages if "data" in m["content"]][-1]["content"]
    assert last_shown["metadata"]["uait"]["state"] == "stopped"
    assert "Stopped: this is only a part." in last_shown["data"]["text/plain"]
    assert "stream" not in kinds(messages)
    (said,) = watched.run("print(part.state, part)")
    assert said["content"]["text"] == "stopped one two \n"
