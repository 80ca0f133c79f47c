"""Tuning jobs from start to adapter, on a tiny model: the journal, ends, resumption, refusals."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.inference.packages import hide
from tests.unit.inference.tiny_models import write_lines
from tests.unit.inference.tuning_jobs import examples_in, request_of, tuning_at
from uait_server_ext.errors import (
    Conflict,
    DependencyMissing,
    InvalidInput,
    ModelNotFound,
    NotFound,
    PermissionDenied,
)
from uait_server_ext.inference import machine
from uait_server_ext.inference.tuning.models import FuseRequest
from uait_server_ext.inference.tuning.service import Tuning

pytestmark = pytest.mark.skipif(not machine.has_module("mlx_lm"), reason="needs mlx-lm")


def names_in(folder: str) -> set[str]:
    return {path.name for path in Path(folder).glob("*")}


async def kinds_of(tuning: Tuning, job: str) -> list[str]:
    return [event.type async for event in tuning.events(job)]


async def test_a_job_teaches_scores_registers_and_can_be_fused(tmp_path: Path) -> None:
    async with tuning_at(tmp_path) as tuning:
        job = await tuning.create("ada", request_of(examples_in(tmp_path / "data")))
        assert job.state == "queued"
        assert (job.data.train, job.data.valid, job.data.heldout) == (12, 6, 3)
        events = [event async for event in tuning.events(job.id)]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        done = await tuning.job(job.id, "ada")
        assert done.state == "completed"
        losses = [event.loss for event in events if event.type == "validation"]
        assert losses[-1] < losses[0]
        assert done.best_loss == min(losses)
        assert done.before is not None
        assert done.after is not None
        assert done.before.examples == 3

        adapter = tuning.library.registry.adapter("tiny", "lights")
        assert done.adapter == adapter.id == "tiny+lights"
        assert adapter.facts["job"] == job.id
        assert adapter.facts["validation_loss"] == done.best_loss
        folder = tuning.library.adapter_folder("tiny", "lights")
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        assert config["fine_tune_type"] == "lora"

        after = [event.sequence async for event in tuning.events(job.id, after=5)]
        assert after == list(range(6, len(events) + 1))
        with pytest.raises(NotFound):
            await tuning.job(job.id, "eve")
        with pytest.raises(Conflict, match="already"):
            await tuning.create("ada", request_of(tmp_path / "data"))
        with pytest.raises(Conflict, match="completed"):
            await tuning.resume(job.id)

        fused = await tuning.fuse(job.id, FuseRequest())
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names_in(fused.folder)
        await tuning.delete(job.id)
        assert not names_in(fused.folder)
        assert tuning.library.registry.adapters("tiny")
        with pytest.raises(NotFound):
            await tuning.job(job.id)


async def test_a_cancelled_job_ends_within_two_seconds_and_can_go_on(tmp_path: Path) -> None:
    request = request_of(examples_in(tmp_path / "data"), steps=100_000, score_limit=0)
    async with tuning_at(tmp_path) as tuning:
        job = await tuning.create("ada", request)
        waiting = await tuning.create("ada", request.model_copy(update={"name": "second"}))
        async for event in tuning.events(job.id):
            if event.type == "checkpoint":
                break
        began = time.monotonic()
        assert (await tuning.cancel(waiting.id)).state == "cancelled"
        assert (await tuning.cancel(job.id)).state == "cancelled"
        assert time.monotonic() - began < 4  # promised: 2 s, here on a machine that is busy
        assert not tuning.running
        with pytest.raises(Conflict, match="has ended"):
            await tuning.cancel(job.id)
        last = (await tuning.job(job.id)).step
        assert (await tuning.resume(job.id)).state == "queued"
        async for event in tuning.events(job.id):
            if event.type == "loss" and event.step > last + 30:
                break
        started = [event async for event in tuning.history(job.id) if event.type == "started"]
        assert [event.step == 0 for event in started] == [True, False]
        await tuning.cancel(job.id)


async def test_a_job_that_stops_with_its_server_goes_on_with_the_next(tmp_path: Path) -> None:
    request = request_of(examples_in(tmp_path / "data"), steps=2000, score_limit=0)
    async with tuning_at(tmp_path) as tuning:
        job = (await tuning.create("ada", request)).id
        async for event in tuning.events(job):
            if event.type == "loss" and event.step >= 20:
                break
    async with tuning_at(tmp_path, recover=False) as tuning:
        kept = await tuning.job(job)
        assert kept.state == "queued"
        checkpoints = [e.step async for e in tuning.history(job) if e.type == "checkpoint"]
    async with tuning_at(tmp_path) as tuning:
        async for event in tuning.events(job):
            if event.type == "started" and event.step:
                assert event.step >= 20  # the checkpoint that it was given time for
                assert event.step > checkpoints[-1]
                break
        await tuning.cancel(job)


async def test_two_services_do_not_run_one_job(tmp_path: Path) -> None:
    request = request_of(examples_in(tmp_path / "data"), steps=100_000, score_limit=0)
    async with tuning_at(tmp_path) as first:
        job = (await first.create("ada", request)).id
        async with tuning_at(tmp_path) as second:
            await asyncio.sleep(0)
            with pytest.raises(Conflict, match="another process"):
                await second.cancel(job)
            with pytest.raises(Conflict):
                await second.take_on(job)
            async for event in second.events(job):  # but what it does can be followed
                if event.type == "checkpoint":
                    break
            assert not second.running
        await first.cancel(job)


async def test_what_cannot_be_tuned_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = examples_in(tmp_path / "data")
    async with tuning_at(tmp_path) as tuning:
        with pytest.raises(PermissionDenied, match="may be read from"):
            await tuning.create("ada", request_of(Path("/etc/hostname")))
        with pytest.raises(PermissionDenied):
            await tuning.check(request_of(Path("../outside.jsonl")))
        with pytest.raises(ModelNotFound):
            await tuning.create("ada", request_of(data).model_copy(update={"model": "tinny"}))
        with pytest.raises(InvalidInput, match="cannot be tuned"):
            await tuning.create("ada", request_of(data).model_copy(update={"model": "echo"}))
        hide(monkeypatch, "mlx_lm")
        with pytest.raises(DependencyMissing, match="mlx_lm"):
            await tuning.create("ada", request_of(data))
        assert await tuning.jobs(None) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "qlora"}, "not.*Use the method `lora`"),
        ({"max_tokens": 20}, r"train\.jsonl:"),
        ({"max_tokens": 4000}, "holds 256"),
    ],
)
async def test_a_job_that_cannot_be_done_fails_and_says_why(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    async with tuning_at(tmp_path) as tuning:
        request = request_of(examples_in(tmp_path / "data"), score_limit=0, **settings)
        job = (await tuning.create("ada", request)).id
        last = (await kinds_of(tuning, job))[-1]
        assert last == "state"
        done = await tuning.job(job)
        assert done.state == "failed"
        assert re.search(said, done.detail)


async def test_it_stops_early_where_the_loss_rises(tmp_path: Path) -> None:
    data = examples_in(tmp_path / "data")
    lines = [{"prompt": f"train {n} red", "completion": "\u00e9" * 4} for n in range(6)]
    write_lines(data / "valid.jsonl", lines)
    async with tuning_at(tmp_path) as tuning:
        request = request_of(
            data, steps=500, patience=2, evaluate_every=5, learning_rate=0.01, score_limit=0
        )
        job = (await tuning.create("ada", request)).id
        events = [event async for event in tuning.events(job)]
        done = await tuning.job(job)
        assert done.state == "completed"
        assert done.step < 500
        assert any(event.type == "note" and "early" in event.text for event in events)
        assert done.best_step is not None
        assert done.best_step == done.step - 2 * 5
