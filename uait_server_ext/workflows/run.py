"""Start a run worker and follow it to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from .models import RUN_EVENT, CellOutput, CellStarted, RunFinished, RunJob

STOP_SECONDS = 2.0


def run_folder(base: Path, notebook: Path, now: datetime) -> Path:
    """Return a new folder `<notebook>-<time>` for one run; never one that is there already."""
    stem = f"{notebook.stem}-{now:%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        folder = base / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{base / stem} exists a thousand times")


def execute(
    job: RunJob,
    *,
    environment: Mapping[str, str],
    follow: Callable[[CellStarted | CellOutput], None],
) -> RunFinished:
    """Execute a job in its own process and report its events as they come.

    The worker leads a process group of its own: an interrupt here ends it and its kernel within
    two seconds. A worker that vanishes is reported as failed, never as completed.
    """
    worker = subprocess.Popen(
        [sys.executable, "-m", "uait_server_ext.workflows.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    assert worker.stdin
    assert worker.stdout
    finished: RunFinished | None = None
    try:
        with worker.stdin as stdin:
            stdin.write(job.model_dump_json())
        with worker.stdout as lines:
            for line in lines:
                event = RUN_EVENT.validate_json(line)
                if isinstance(event, RunFinished):
                    finished = event
                else:
                    follow(event)
        code = worker.wait()
    except BaseException:
        stop(worker)
        raise
    return finished or RunFinished(
        state="failed", error=f"The run worker ended without a result (exit code {code})."
    )


def stop(worker: subprocess.Popen[str]) -> None:
    """End a worker and its kernel: interrupt, then terminate, then kill the process group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(worker.pid, number)
        except ProcessLookupError:
            break
        try:
            worker.wait(STOP_SECONDS / 2)
            break
        except subprocess.TimeoutExpired:
            continue
    worker.wait()
