"""A trainer or a server that is killed at a random step: the job goes on from its checkpoint."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.inference.tuning_jobs import examples_in, request_of, tuning_at
from uait_server_ext.inference import machine

pytestmark = [
    pytest.mark.skipif(not machine.has_module("mlx_lm"), reason="needs mlx-lm"),
    pytest.mark.timeout(900),  # a busy machine starts eight processes slowly
]

STEPS = 150  # so many that no trainer ends before it can be killed
KILLS = 2
SEED = 20261123
SERVER = """
import asyncio, sys
from pathlib import Path
from tests.unit.inference.tuning_jobs import examples_in, request_of, tuning_at

async def main(folder):
    async with tuning_at(folder) as tuning:
        for job in await tuning.jobs(None) or [
            await tuning.create("ada", request_of(examples_in(folder / "data"), **{settings}))
        ]:
            async for event in tuning.events(job.id):
                print(event.type, getattr(event, "step", ""), flush=True)

asyncio.run(main(Path(sys.argv[1])))
"""
SETTINGS = {"steps": STEPS, "report_every": 1, "checkpoint_every": 5, "score_limit": 0}


def trainers() -> set[int]:
    """Return the trainers that this process has started."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.split(None, 1) for line in listed.stdout.splitlines())
    return {int(pid) for pid, command in lines if "tuning.trainer" in command}


async def weights_after(
    folder: Path, name: str, kills: list[int]
) -> tuple[str, list[int], list[int]]:
    """Run a job, killing its trainer when it is past each of the steps.

    Returns the digest of the adapter, the steps it went on from, and those it was killed behind.
    """
    begun, killed = [], []
    async with tuning_at(folder) as tuning:
        request = request_of(examples_in(folder / "data"), name, **SETTINGS)
        job = (await tuning.create("ada", request)).id
        async for event in tuning.events(job):
            if event.type == "started":
                begun.append(event.step)
            elif event.type == "loss" and kills and event.step >= kills[0]:
                kills.pop(0)
                for pid in trainers():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(event.step)
        done = await tuning.job(job)
        assert done.state == "completed", done.detail
        file = tuning.library.adapter_folder("tiny", name) / "adapters.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest(), begun, killed


async def test_a_killed_trainer_goes_on_and_learns_the_very_same(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    kills = sorted(draw.sample(range(6, STEPS // 3), KILLS))
    whole, begun, _ = await weights_after(tmp_path, "whole", [])
    assert begun == [0]
    broken, begun, killed = await weights_after(tmp_path, "broken", kills)
    assert killed
    assert len(begun) == len(killed) + 1
    assert all(step > 0 for step in begun[1:])
    assert broken == whole


def test_a_killed_server_leaves_a_job_that_the_next_one_ends(tmp_path: Path) -> None:
    script = SERVER.replace("{settings}", repr(SETTINGS))
    command = [sys.executable, "-c", script, str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout
    steps = (line.split() for line in first.stdout)
    reached = next(int(word[1]) for word in steps if word[0] == "loss" and int(word[1]) > 20)
    first.kill()
    first.wait()
    first.stdout.close()
    began = time.monotonic()
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert second.returncode == 0, second.stderr
    lines = [line.split() for line in second.stdout.splitlines()]
    started = [int(words[1]) for words in lines if words[0] == "started"]
    assert started[0] == 0  # the journal has both starts
    assert 5 <= started[1] <= STEPS
    assert [words for words in lines if words[0] == "loss"][-1][1] == str(STEPS)
    assert lines[-1][0] == "state"
    assert reached
    assert time.monotonic() - began < 200
