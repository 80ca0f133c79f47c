"""`uait tune`: teach a model from examples, from the shell; it needs no server.

A job that is broken off goes on with `uait tune resume`, or with the next start of a server on the
same state.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uait_server_ext.errors import Conflict, UaitError

from .state import DatabaseUrl, DataDir, MasterKeyUrl, Place, operator

if TYPE_CHECKING:
    from uait_server_ext.inference.tuning.models import DataReport, Score, TuneEvent, TuneJob
    from uait_server_ext.inference.tuning.service import Tuning

app = typer.Typer(help="Teach a local model a task from examples.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(help="A job's id.")]
Data = Annotated[
    Path,
    typer.Argument(help="A JSON Lines file, or a folder with train.jsonl and its other parts."),
]


@app.callback()
def place(
    context: typer.Context,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = "",
    master_key: MasterKeyUrl = "file:",
) -> None:
    """Teach a local model a task from examples."""
    context.obj = Place(data_dir, database_url, master_key)


@app.command("check")
def check(data: Data) -> None:
    """Read examples and report on them: how many, which lines are wrong, what occurs twice."""
    from uait_server_ext.inference.tuning.data import read_examples, report_of

    show_data(report_of(read_examples(data)))


@app.command("run")
def run(
    context: typer.Context,
    data: Data,
    name: Annotated[str, typer.Option(help="Of the adapter: the model is then `base+name`.")],
    model: Annotated[str, typer.Option(help="The base model.")] = "auto",
    steps: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in one step.")] = 4,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-4,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    layers: Annotated[int, typer.Option(min=0, help="The last so many blocks; 0: all.")] = 0,
    method: Annotated[str, typer.Option(help="auto, lora or qlora.")] = "auto",
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many validations without a lower loss.")
    ] = 0,
    score_limit: Annotated[
        int, typer.Option(min=0, help="Held-out examples to score before and after.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Teach a model and show how it goes; Ctrl-C ends it, `uait tune resume` goes on."""
    from pydantic import ValidationError

    from uait_server_ext.api.operation import invalid
    from uait_server_ext.inference.tuning.models import TuneRequest

    given = {
        "name": name,
        "data": str(data.absolute()),
        "model": model,
        "settings": {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "rank": rank,
            "layers": layers,
            "method": method,
            "patience": patience,
            "score_limit": score_limit,
            "seed": seed,
        },
    }
    try:
        request = TuneRequest.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from None

    async def work() -> TuneJob:
        async with opened(context.obj, data.absolute()) as tuning:
            job = await tuning.create(operator().id, request)
            print(f"job {job.id}")
            show_data(job.data)
            return await followed(tuning, job.id)

    finish(asyncio.run(work()))


@app.command("resume")
def resume(context: typer.Context, job: Job) -> None:
    """Let a job that failed, was cancelled or broken off go on from its last checkpoint."""

    async def work() -> TuneJob:
        async with opened(context.obj) as tuning:
            found = await tuning.job(job)
            seen = max([event.sequence async for event in tuning.history(job)], default=0)
            if found.state in ("failed", "cancelled"):
                await tuning.resume(job)
            else:
                await tuning.take_on(job)
            return await followed(tuning, job, seen)

    finish(asyncio.run(work()))


@app.command("list")
def list_jobs(context: typer.Context) -> None:
    """List the jobs of this state, newest first."""
    from rich.console import Console
    from rich.table import Table

    async def work() -> list[TuneJob]:
        async with opened(context.obj) as tuning:
            return await tuning.jobs(None)

    table = Table("job", "model", "state", "steps", "validation loss", "held-out score", "begun")
    for job in asyncio.run(work()):
        table.add_row(
            job.id,
            f"{job.model}+{job.name}",
            job.state,
            f"{job.step}/{job.steps}",
            "" if job.best_loss is None else f"{job.best_loss:.3f}",
            scores(job),
            datetime.fromtimestamp(job.created_at, UTC).strftime("%Y-%m-%d %H:%M"),
        )
    Console().print(table)


@app.command("show")
def show_job(context: typer.Context, job: Job) -> None:
    """Show what a job has done."""

    async def work() -> TuneJob:
        async with opened(context.obj) as tuning:
            async for event in tuning.history(job):
                show(event)
            return await tuning.job(job)

    found = asyncio.run(work())
    print(f"{found.id}: {found.state}{f': {found.detail}' if found.detail else ''}")


@app.command("delete")
def delete_job(context: typer.Context, job: Job) -> None:
    """Delete a job that has ended, with its checkpoints; its adapter stays in the catalogue."""

    async def work() -> None:
        async with opened(context.obj) as tuning:
            await tuning.delete(job)

    asyncio.run(work())
    print(f"{job}: deleted")


@app.command("fuse")
def fuse(
    context: typer.Context,
    job: Job,
    folder: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    packed: Annotated[
        bool, typer.Option("--packed", help="Keep weights packed as the base model's are.")
    ] = False,
) -> None:
    """Write the base model with a job's adapter worked in, in a form that MLX and others load."""
    from uait_server_ext.inference.tuning.models import Fused, FuseRequest

    if folder.exists():
        raise Conflict(f"{folder} is there already. Name a new folder.")

    async def work() -> Fused:
        async with opened(context.obj) as tuning:
            return await tuning.fuse(job, FuseRequest(unpacked=not packed))

    fused = asyncio.run(work())
    shutil.move(fused.folder, folder)
    print(f"{folder}: {fused.size_bytes / 1e6:,.0f} MB")


@asynccontextmanager
async def opened(place: Place, *roots: Path) -> AsyncIterator[Tuning]:
    """Open tuning on this state; it takes on no job but those it is told to."""
    from uait_server_ext.services import open_tuning

    settings = place.settings()
    with place.opened() as foundation:
        tuning = open_tuning(
            settings, foundation.database, allowed_roots=roots, log=logging.getLogger("uait")
        )
        await tuning.start(recover=False)
        try:
            yield tuning
        finally:
            await tuning.stop()


async def followed(tuning: Tuning, job: str, after: int = 0) -> TuneJob:
    """Show events until the job has ended; Ctrl-C ends it."""
    try:
        async for event in tuning.events(job, after=after):
            show(event)
    except asyncio.CancelledError:
        await tuning.cancel(job)
        print(f"\ncancelled; go on with: uait tune resume {job}", file=sys.stderr)
        raise
    return await tuning.job(job)


def finish(job: TuneJob) -> None:
    """Say how the job ended.

    Raises:
        UaitError: it did not complete.
    """
    if job.state != "completed":
        raise UaitError(f"{job.id} is {job.state}: {job.detail or 'it was ended.'}")
    if job.before and job.after:
        print(f"held-out score: {scores(job)}")
    print(f"adapter: {job.adapter}")


def scores(job: TuneJob) -> str:
    """Return the score before and after."""
    return " → ".join(f"{score.main:.0%}" for score in (job.before, job.after) if score)


def show_data(report: DataReport) -> None:
    """Print what a data set holds."""
    split = " (split off)" if report.split else ""
    print(f"{report.train} to learn, {report.valid} to validate{split}, {report.heldout} held out")
    if report.duplicates or report.leaked:
        print(
            f"{report.duplicates} occur twice in a part; {report.leaked} of the other parts have a "
            "prompt that is in the training part, which makes losses and scores look too good:"
        )
        for sample in report.samples:
            print(f"  {sample.again} is like {sample.first}")


def show(event: TuneEvent) -> None:
    """Print an event as a line."""
    match event.type:
        case "started":
            share = event.trained_parameters / event.parameters
            goes_on = f"goes on from step {event.step}, " if event.step else ""
            print(
                f"{goes_on}{event.steps} steps, {event.trained_parameters:,} parameters learn "
                f"({share:.2%}), {event.method}, longest example {event.longest} tokens"
            )
        case "note":
            print(event.text)
        case "loss":
            rate = f"{event.tokens_per_second:.0f} tokens/s"
            print(f"step {event.step:5}  loss {event.loss:.3f}  {rate}", flush=True)
        case "validation":
            best = "  (lowest)" if event.best else ""
            print(f"step {event.step:5}  validation loss {event.loss:.3f}{best}", flush=True)
        case "score":
            show_score(event.when, event.score)


def show_score(when: str, score: Score) -> None:
    """Print a score as it is."""
    fields = "" if score.fields is None else f"fields {score.fields:.0%}, "
    print(
        f"held out, {when}: {fields}exact {score.exact:.0%}, words F1 {score.similarity:.2f} "
        f"({score.examples} examples)",
        flush=True,
    )
