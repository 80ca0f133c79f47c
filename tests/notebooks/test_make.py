"""The README's own commands, run as a new user runs them (set-up is done by then)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(jupyter_folders: dict[str, str], model_cache: Path) -> dict[str, str]:
    assert (REPOSITORY / os.environ.get("VENV", ".venv") / ".setup").exists(), "run `make pytest`"
    dropped = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "UAIT_URL", "UAIT_TOKEN")
    return {k: v for k, v in os.environ.items() if k not in dropped}


@pytest.mark.long  # `make test` runs the same notebook twice otherwise
@pytest.mark.timeout(400)
def test_make_demo_answers_and_declines_as_promised(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["make", "demo"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = [Path(p) for p in re.findall(r"^kept: (.+)$", done.stdout, re.MULTILINE)]
    assert [path.suffix for path in kept] == [".ipynb", ".html"]
    result = json.loads((REPOSITORY / kept[0].parent / "result.json").read_text("utf-8"))
    answered = [r for r in result["results"] if r["source"]]
    refused = [r for r in result["results"] if not r["source"]]
    assert len(answered) == 8
    assert len(refused) == 2
    assert sum(r["right"] for r in result["results"]) >= 8
    assert all(r["right"] for r in refused)
    assert re.search(r"right: \d+", done.stdout)
    assert "[1] " in done.stdout
    assert "run: completed" in done.stdout


def test_make_lab_starts_and_prints_the_link_to_log_in(
    environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = [
        "--no-browser",
        "--port=0",
        f"--ServerApp.root_dir={tmp_path}",
        f"--UaitApp.data_dir={tmp_path / 'state'}",
    ]
    if os.geteuid() == 0:
        arguments.append("--allow-root")
    log = tmp_path / "lab.log"
    with log.open("wb") as output:
        lab = subprocess.Popen(
            ["make", "lab", f"LAB_ARGS={' '.join(arguments)}"],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        link = wait_for_link(log, lab)
        page = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(link, timeout=30)
        assert page.status == 200
        assert b"<form" in page.read()
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(20)


def wait_for_link(log: Path, lab: subprocess.Popen[bytes]) -> str:
    """Return the link that the server prints, with which the first person makes their account."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and lab.poll() is None:
        if found := re.search(r"http://\S+/uait/setup#secret=[\w-]+", log.read_text("utf-8")):
            return found[0]
        time.sleep(0.2)
    raise AssertionError(log.read_text("utf-8"))
