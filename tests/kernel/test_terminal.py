"""The magics in plain `ipython`: in a real terminal, and with its output in a pipe."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.kernel.conftest import ProtocolServer

pytestmark = pytest.mark.slow

IPYTHON = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor"]
ROOT = Path(__file__).parents[2]


def environment(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return os.environ | {"IPYTHONDIR": str(tmp_path), "PYTHONPATH": path, "TERM": "xterm"}


def test_output_in_a_pipe_is_printed_once(connected: ProtocolServer, tmp_path: Path) -> None:
    code = "%load_ext uait_kernel\na = %ask --chat one two three\nprint(type(a).__name__)\n"
    run = subprocess.run(
        [*IPYTHON, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.stdout.splitlines() == ["one two three", "Answer"]


def test_an_error_ends_a_script_with_one_line(connected: ProtocolServer, tmp_path: Path) -> None:
    script = tmp_path / "script.ipy"
    script.write_text("%load_ext uait_kernel\n%ask -c missing what\nprint('not reached')\n")
    run = subprocess.run(
        [*IPYTHON, str(script)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 1
    assert "not reached" not in run.stdout
    assert "NotFound: There is no collection 'missing'." in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_words_appear_one_by_one_in_a_terminal(connected: ProtocolServer, tmp_path: Path) -> None:
    import pty

    connected.delay = 0.2
    outside, inside = pty.openpty()
    process = subprocess.Popen(
        [*IPYTHON, "--simple-prompt"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environment(tmp_path),
        start_new_session=True,
    )
    os.close(inside)
    seen = ""

    def read_until(pattern: str, seconds: float = 30.0) -> str:
        nonlocal seen
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, seen)):
            ready, _, _ = select.select([outside], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come; there was {seen!r}"
            seen += os.read(outside, 4096).decode()
        before, seen = seen[: found.end()], seen[found.end() :]
        return before

    try:
        read_until(r"In \[1\]: ")
        os.write(outside, b"%load_ext uait_kernel\n")
        read_until(r"In \[2\]: ")
        os.write(outside, b"%ask --chat one two three\n")
        began = time.monotonic()
        read_until(r"three\r\n")  # the terminal's echo of the line
        read_until(r"one ")
        first = time.monotonic() - began
        assert "\x1b" not in read_until(r"three\r\n")
        assert time.monotonic() - began - first > 0.2
        assert "model='echo'" in read_until(r"In \[3\]: ")
    finally:
        process.kill()
        process.wait()
        os.close(outside)
