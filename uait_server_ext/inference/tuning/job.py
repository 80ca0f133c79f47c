"""One job: a trainer is started, heard and, where it dies, started again from its checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uait_server_ext.errors import Conflict
from uait_server_ext.inference.library import Library

from .journal import EVENT, Journal
from .models import (
    Score,
    TuneCheckpoint,
    TuneJob,
    TuneLoss,
    TuneNote,
    TuneScore,
    TuneState,
    TuneValidation,
)
from .process import TrainerDied, TrainerProcess

MOST_DEATHS = 3  # without a checkpoint between them


@dataclass(frozen=True)
class Outcome:
    """How a job ended; ``changes`` are fields of its row."""

    state: TuneState
    detail: str = ""
    changes: dict[str, Any] = field(default_factory=dict)


async def run_job(
    task: dict[str, Any],
    job: TuneJob,
    *,
    journal: Journal,
    library: Library,
    threads: int,
    heard: Callable[[], Awaitable[None]],
    word: Callable[[], str],
    log: logging.Logger,
) -> Outcome:
    """Run a job to its end; cancelling ends the trainer by the ``word``, within two seconds."""
    deaths = 0
    while True:
        trainer = await TrainerProcess.start(task, threads=threads, log=log)
        log.info("tuning %s runs in process %d", job.id, trainer.pid)
        try:
            async for said in trainer.events():
                match said["type"]:
                    case "done":
                        return await _completed(job, said, journal, library)
                    case "failed":
                        return Outcome("failed", said["detail"])
                    case "stopped":
                        return Outcome("queued", "It was stopped.")
                deaths = 0 if said["type"] == "checkpoint" else deaths
                await _note(journal, job.id, said)
                await heard()
        except TrainerDied as error:
            deaths += 1
            if deaths > MOST_DEATHS:
                return Outcome(
                    "failed",
                    f"The process that learns died {deaths} times without getting further: {error}."
                    " Start a job with a smaller batch or shorter examples, or resume this one.",
                )
            note = f"The process that learns died: {error}. It goes on from the last checkpoint."
            await journal.append(job.id, TuneNote(text=note))
            await heard()
        except asyncio.CancelledError:
            await trainer.end(word())
            raise
        finally:
            await trainer.end()


async def _note(journal: Journal, job: str, said: dict[str, Any]) -> None:
    """Journal an event, and in the job's row what it changes there."""
    event = EVENT.validate_python(said)
    changes: dict[str, Any] = {}
    match event:
        case TuneLoss():
            changes = {"step": event.step}
        case TuneCheckpoint():
            changes = {"step": event.step, "interruptions": 0}
        case TuneValidation(best=True):
            changes = {"best_step": event.step, "best_loss": event.loss}
        case TuneScore():
            changes = {event.when: event.score.model_dump_json()}
    await journal.append(job, event, **changes)


async def _completed(
    job: TuneJob, said: dict[str, Any], journal: Journal, library: Library
) -> Outcome:
    """Put the adapter into the catalogue."""
    before = (await journal.job(job.id)).before
    facts = {
        "job": job.id,
        "steps": said["step"],
        "best_step": said["best_step"],
        "validation_loss": said["best_loss"],
        "first_validation_loss": said["validations"][0][1],
        "before": _figures(before),
        "after": _figures(Score.model_validate(said["after"]) if said["after"] else None),
        "data": job.data.model_dump(exclude={"samples"}),
        "settings": job.settings.model_dump(mode="json"),
    }
    try:
        adapter = Path(said["adapter"])
        await asyncio.to_thread(library.register_adapter, job.model, job.name, adapter, facts)
    except Conflict as error:
        known = library.registry.adapter(job.model, job.name)
        if known.facts.get("job") != job.id:  # else only the word of it was lost
            return Outcome("failed", error.detail)
    return Outcome(
        "completed",
        changes={
            "step": said["step"],
            "best_step": said["best_step"],
            "best_loss": said["best_loss"],
            "adapter": f"{job.model}+{job.name}",
        },
    )


def _figures(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else score.model_dump(exclude={"answers"})
