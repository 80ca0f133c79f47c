"""Operations on tuning: check examples; start, follow, end and resume jobs; write models out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from pydantic import Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.inference.tuning.models import (
    DataReport,
    Fused,
    FuseRequest,
    JobId,
    TuneEvent,
    TuneJob,
    TuneJobs,
    TuneRequest,
)

After = Annotated[int, Field(ge=0, description="The last sequence that the client has.")]
SEES_ALL = "server:admin"


def owner(call: Call) -> str | None:
    """Return whose jobs a caller may see: their own; an administrator those of all."""
    return None if call.principal.may(SEES_ALL) else call.principal.id


@operation("POST", "/tuning/check", permission="models:tune", rate="write")
async def check_examples(call: Call, body: TuneRequest) -> DataReport:
    """Read the examples of a job and report on them; nothing is started."""
    tuning = await call.services.tuning()
    return await tuning.check(body)


@operation("POST", "/tuning/jobs", permission="models:tune", rate="write")
async def start_tuning(call: Call, body: TuneRequest) -> TuneJob:
    """Queue a job that teaches a model from examples in files of the server."""
    tuning = await call.services.tuning()
    return await tuning.create(call.principal.id, body)


@operation("GET", "/tuning/jobs", permission="models:tune", rate="read")
async def list_tuning(call: Call) -> TuneJobs:
    """List your jobs, newest first."""
    tuning = await call.services.tuning()
    return TuneJobs(jobs=await tuning.jobs(owner(call)))


@operation("GET", "/tuning/jobs/{job}", permission="models:tune", rate="read")
async def get_tuning(call: Call, job: JobId) -> TuneJob:
    """Describe a job: how far it is, its losses, its scores before and after."""
    tuning = await call.services.tuning()
    return await tuning.job(job, owner(call))


@operation("DELETE", "/tuning/jobs/{job}", permission="models:tune", rate="write")
async def delete_tuning(call: Call, job: JobId) -> None:
    """Delete a job that has ended, with its checkpoints; its adapter stays in the catalogue."""
    tuning = await call.services.tuning()
    await tuning.delete(job, owner(call))


@operation("GET", "/tuning/jobs/{job}/events", permission="models:tune", rate="read")
async def follow_tuning(call: Call, job: JobId, after: After = 0) -> AsyncIterator[TuneEvent]:
    """Stream what a job does, from its start or behind a sequence, until it has ended."""
    tuning = await call.services.tuning()
    async with aclosing(tuning.events(job, owner(call), after=after)) as events:
        async for event in events:
            yield event


@operation("POST", "/tuning/jobs/{job}/cancel", permission="models:tune", rate="write")
async def cancel_tuning(call: Call, job: JobId) -> TuneJob:
    """End a job within two seconds; it can be resumed from its last checkpoint."""
    tuning = await call.services.tuning()
    return await tuning.cancel(job, owner(call))


@operation("POST", "/tuning/jobs/{job}/resume", permission="models:tune", rate="write")
async def resume_tuning(call: Call, job: JobId) -> TuneJob:
    """Let a failed or cancelled job go on from its last checkpoint."""
    tuning = await call.services.tuning()
    return await tuning.resume(job, owner(call))


@operation("POST", "/tuning/jobs/{job}/fuse", permission="models:tune", rate="write")
async def fuse_tuning(call: Call, job: JobId, body: FuseRequest) -> Fused:
    """Write the base model with the adapter worked in, as files that MLX and others load."""
    tuning = await call.services.tuning()
    return await tuning.fuse(job, body, owner(call))
