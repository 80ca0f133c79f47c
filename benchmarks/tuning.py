"""Teach the embedded model the shipped data set and show what that brings.

    python benchmarks/tuning.py [--quick] [--check] [--steps N] [--score N]

Prints the validation losses as they come and the score of held-out examples (other wordings,
people and machines than were learned) before and after, as they are. ``--check`` fails unless the
validation loss falls; the score is no floor. Takes some minutes on two idle cores; ``--quick``,
with few steps and no score, about one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from uait_server_ext.commands.tuning import show, show_data
from uait_server_ext.inference.library import Library
from uait_server_ext.inference.tuning.models import TuneJob, TuneRequest
from uait_server_ext.inference.tuning.service import Tuning
from uait_server_ext.paths import default_model_cache
from uait_server_ext.storage.database import Database, sqlite_url

DATA = Path(__file__).parent.parent / "notebooks" / "data" / "bookings"
NAME = "benchmark-bookings"
STEPS, QUICK_STEPS = 30, 8
PATIENT_SECONDS = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps, no score")
    parser.add_argument("--check", action="store_true", help="fail unless the loss falls")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--score", type=int, default=40, help="held-out examples to score")
    options = parser.parse_args(arguments)
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    every = max(1, steps // 2)
    settings = {
        "steps": steps,
        "report_every": max(1, steps // 6),
        "evaluate_every": every,
        "checkpoint_every": every,
        "score_limit": 0 if options.quick else options.score,
        "answer_tokens": 64,
    }
    request = TuneRequest.model_validate({"name": NAME, "data": str(DATA), "settings": settings})
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        job, losses = asyncio.run(taught(Path(folder), request))
    seconds = time.monotonic() - began
    if job.state != "completed":
        print(f"the job is {job.state}: {job.detail}")
        return 1
    return report(job, losses, seconds, check=options.check)


async def taught(folder: Path, request: TuneRequest) -> tuple[TuneJob, list[float]]:
    """Run the job in a state of its own; return it with its validation losses."""
    database = Database(sqlite_url(folder / "uait.db"))
    database.open()
    library = Library.open(default_model_cache())
    base = library.catalogue.get(request.model, "chat")
    await asyncio.to_thread(library.cache.pull, base)
    known = {adapter.name for adapter in library.registry.adapters(base.id)}
    if NAME in known:  # of a run that was broken off
        library.remove(f"{base.id}+{NAME}")
    tuning = Tuning(
        database=database,
        library=library,
        folder=folder / "tuning",
        allowed_roots=(DATA,),
        log=logging.getLogger("benchmark"),
    )
    await tuning.start()
    losses: list[float] = []
    try:
        job = await tuning.create("benchmark", request)
        show_data(job.data)
        async with asyncio.timeout(PATIENT_SECONDS):
            async for event in tuning.events(job.id):
                show(event)
                if event.type == "validation":
                    losses.append(event.loss)
        done = await tuning.job(job.id)
    finally:
        await tuning.stop()
        database.close()
    if done.state == "completed":
        library.remove(f"{base.id}+{NAME}")
    return done, losses


def report(job: TuneJob, losses: list[float], seconds: float, *, check: bool) -> int:
    """Print the figures that matter; return the exit code."""
    print(f"{job.step} steps and all scoring took {seconds:.0f} s")
    if job.before and job.after:
        print(
            f"held-out score, {job.before.examples} examples: fields right "
            f"{job.before.main:.1%} before, {job.after.main:.1%} after; "
            f"answers wholly right {job.before.exact:.1%} before, {job.after.exact:.1%} after"
        )
    lowest = min(losses)
    print(f"validation loss: {losses[0]:.3f} before, {lowest:.3f} at its lowest (must fall)")
    return 1 if check and lowest >= losses[0] else 0


if __name__ == "__main__":
    sys.exit(main())
