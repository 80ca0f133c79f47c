"""Jobs and their events in the database: what a restart of the server finds again."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from uait_server_ext.errors import NotFound
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, now

from .models import (
    Base,
    DataReport,
    Score,
    TuneEvent,
    TuneJob,
    TuneSettings,
    TuneState,
    TuneStateChange,
)
from .tables import tuning_events, tuning_jobs

PAGE = 500
EVENT: TypeAdapter[TuneEvent] = TypeAdapter(TuneEvent)


class Journal:
    """Reads and writes jobs; one event and what it changes of its job are one transaction."""

    def __init__(self, database: Database, *, clock: Clock = now) -> None:
        self._database = database
        self._clock = clock

    async def create(self, job: str, values: dict[str, Any]) -> TuneJob:
        """Write a new job, queued."""
        row = {
            "id": job,
            "state": "queued",
            "detail": "",
            "step": 0,
            "interruptions": 0,
            "created_at": self._clock(),
            **values,
        }

        def work(connection: Connection) -> TuneJob:
            connection.execute(insert(tuning_jobs).values(**row))
            self._append(connection, job, TuneStateChange(state="queued"))
            return job_of(_row(connection, job))

        return await self._database.write(work)

    async def job(self, job: str, owner: str | None = None) -> TuneJob:
        """Return a job; with an owner, only where it is theirs.

        Raises:
            NotFound: there is none.
        """
        return job_of(await self._database.read(lambda connection: _row(connection, job, owner)))

    async def jobs(self, owner: str | None) -> list[TuneJob]:
        """Return an owner's jobs, or all, newest first."""
        query = select(tuning_jobs).order_by(tuning_jobs.c.created_at.desc()).limit(PAGE)
        if owner is not None:
            query = query.where(tuning_jobs.c.owner == owner)
        rows = await self._database.read(lambda connection: list(connection.execute(query)))
        return [job_of(row) for row in rows]

    async def unfinished(self) -> list[str]:
        """Return the ids of jobs that have not ended, oldest first."""
        query = (
            select(tuning_jobs.c.id)
            .where(tuning_jobs.c.state.in_(("queued", "running")))
            .order_by(tuning_jobs.c.created_at)
        )
        return await self._database.read(lambda connection: list(connection.scalars(query)))

    async def append(self, job: str, event: Base, **changes: Any) -> None:
        """Add an event, and change fields of its job."""

        def work(connection: Connection) -> None:
            if changes:
                _change(connection, job, changes)
            self._append(connection, job, event)

        await self._database.write(work)

    async def set_state(self, job: str, state: TuneState, detail: str = "", **changes: Any) -> None:
        """Put a job into a state, as an event."""
        if state == "running":
            changes["started_at"] = self._clock()
        changes["ended_at"] = None if state in ("queued", "running") else self._clock()
        event = TuneStateChange(state=state, detail=detail)
        await self.append(job, event, state=state, detail=detail, **changes)

    async def interrupted(self, job: str) -> int:
        """Count an interruption; return how many there were since the last checkpoint."""

        def work(connection: Connection) -> int:
            count = int(_row(connection, job).interruptions) + 1
            _change(connection, job, {"interruptions": count})
            return count

        return await self._database.write(work)

    async def events(self, job: str, after: int) -> list[TuneEvent]:
        """Return the events of a job behind a sequence, in order."""
        query = (
            select(tuning_events)
            .where(tuning_events.c.job == job, tuning_events.c.sequence > after)
            .order_by(tuning_events.c.sequence)
            .limit(PAGE)
        )
        rows = await self._database.read(lambda connection: list(connection.execute(query)))
        return [
            EVENT.validate_python({**json.loads(row.event), "sequence": row.sequence, "at": row.at})
            for row in rows
        ]

    async def delete(self, job: str) -> None:
        """Delete a job with its events."""

        def work(connection: Connection) -> None:
            connection.execute(delete(tuning_events).where(tuning_events.c.job == job))
            connection.execute(delete(tuning_jobs).where(tuning_jobs.c.id == job))

        await self._database.write(work)

    def _append(self, connection: Connection, job: str, event: Base) -> None:
        newest = select(func.max(tuning_events.c.sequence)).where(tuning_events.c.job == job)
        connection.execute(
            insert(tuning_events).values(
                job=job,
                sequence=(connection.scalar(newest) or 0) + 1,
                at=self._clock(),
                event=event.model_dump_json(exclude={"sequence", "at"}),
            )
        )


def job_of(row: Row[Any]) -> TuneJob:
    """Turn a row into a job."""
    settings = TuneSettings.model_validate_json(row.settings)
    return TuneJob(
        id=row.id,
        owner=row.owner,
        name=row.name,
        model=row.model,
        state=row.state,
        detail=row.detail,
        settings=settings,
        data=DataReport.model_validate_json(row.data),
        step=row.step,
        steps=settings.steps,
        best_step=row.best_step,
        best_loss=row.best_loss,
        before=Score.model_validate_json(row.before) if row.before else None,
        after=Score.model_validate_json(row.after) if row.after else None,
        adapter=row.adapter,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def _row(connection: Connection, job: str, owner: str | None = None) -> Row[Any]:
    query = select(tuning_jobs).where(tuning_jobs.c.id == job)
    if owner is not None:
        query = query.where(tuning_jobs.c.owner == owner)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound(f"There is no tuning job {job}. `uait tune list` shows those there are.")
    return row


def _change(connection: Connection, job: str, values: dict[str, Any]) -> None:
    connection.execute(update(tuning_jobs).where(tuning_jobs.c.id == job).values(**values))
