"""The audit log: append-only, chained with a key that the database does not have, anchored.

`append` works inside the caller's transaction, so an event and what it tells of are both there or
neither. Reading the tail and appending happen under the write lock: several processes may append.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, func, insert, select
from sqlalchemy.exc import SQLAlchemyError

from uait_server_ext.errors import NotFound, SealBroken, Unavailable
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, now
from uait_server_ext.storage.sealing import Sealer

from .anchor import Anchor, Mark
from .models import AuditPage, AuditQuery, AuditReport, Break
from .record import FIELDS, START, AuditEvent, AuditRecord, canonical, link
from .tables import audit_events

__all__ = ["AuditEvent", "AuditLog", "AuditPage", "AuditQuery", "AuditRecord", "AuditReport"]

KEY_NAME = "audit:chain"
KEY_BYTES = 32
VERIFY_ROWS = 2000
EXPORT_ROWS = 1000
POSTGRES_LOCK = 0x75616974  # "uait"

log = logging.getLogger("uait.audit")


class AuditLog:
    """Appends, queries, exports and verifies; `open` before use."""

    def __init__(
        self, database: Database, sealer: Sealer, anchor: Path, *, clock: Clock = now
    ) -> None:
        self.database = database
        self.sealer = sealer
        self.anchor = Anchor(anchor)
        self.clock = clock
        self._key: bytes | None = None
        self._mine = f"uait-audit-{id(self)}"
        event.listen(database.engine, "rollback", self._forget)
        event.listen(database.engine, "checkin", self._committed)

    def open(self) -> None:
        """Make or load the chain's key; blocks.

        Raises:
            SealBroken: the key is gone although there are events.
        """

        def prepare(connection: Connection) -> bytes:
            return self._chain_key(connection)

        self._key = self.database.write_now(prepare)

    def append(self, connection: Connection, event: AuditEvent) -> AuditRecord:
        """Append an event in the caller's transaction; it is there once that commits.

        Raises:
            SealBroken: the sealed values were put back to an older state than the log knows.
        """
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(POSTGRES_LOCK)))
        key = self._key or self._chain_key(connection)
        tail = newest(connection)
        revision = self.sealer.revision(connection)
        if tail and tail.seal_revision > revision:
            raise SealBroken(
                "The sealed values are older than the audit log says: somebody put them back. "
                "Restore both from one backup; then `uait vault accept-restore`."
            )
        previous = tail.chain if tail else START
        values: dict[str, Any] = {
            **event.model_dump(),
            "sequence": (tail.sequence if tail else 0) + 1,
            "at": float(self.clock()),
            "detail": canonical(event.detail),
            "seal_revision": revision,
        }
        values["chain"] = link(key, previous, tuple(values[name] for name in FIELDS))
        connection.execute(insert(audit_events).values(**values))
        self._remember(connection, key, tail, Mark(values["sequence"], values["chain"]))
        return record_of(values | {"detail": event.detail})

    async def record(self, event: AuditEvent) -> None:
        """Append an event in a transaction of its own.

        Raises:
            Unavailable: it could not be written; do not do what it was to tell of.
        """
        try:
            await self.database.write(lambda connection: self.append(connection, event))
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(
                "The audit log cannot be written, so nothing that must be recorded is done. Check "
                "the disk and the database; the server's log has the reason."
            ) from error

    async def query(self, query: AuditQuery) -> AuditPage:
        """Return the newest events that fit."""

        def read(connection: Connection) -> list[AuditRecord]:
            column = audit_events.c
            statement = select(audit_events).order_by(column.sequence.desc())
            if query.action:
                statement = statement.where(
                    column.action.startswith(query.action, autoescape=True)
                    if query.action.endswith(".")
                    else column.action == query.action
                )
            for name in ("principal", "outcome", "target"):
                if (wanted := getattr(query, name)) is not None:
                    statement = statement.where(column[name] == wanted)
            if query.since is not None:
                statement = statement.where(column.at >= query.since)
            if query.until is not None:
                statement = statement.where(column.at < query.until)
            if query.before is not None:
                statement = statement.where(column.sequence < query.before)
            rows = connection.execute(statement.limit(query.limit + 1)).mappings()
            return [record_of(row) for row in rows]

        found = await self.database.read(read)
        page = found[: query.limit]
        more = len(found) > query.limit
        return AuditPage(events=page, next=page[-1].sequence if more else None)

    async def export(self, *, after: int = 0, limit: int | None = None) -> AsyncIterator[str]:
        """Yield events after a sequence, oldest first, as JSON lines; reads in pieces."""
        last = None if limit is None else after + limit  # sequences have no gaps
        while rows := await self.database.read(partial(rows_after, after, EXPORT_ROWS)):
            for row in rows:
                if last is not None and row.sequence > last:
                    return
                yield record_of(row._mapping).model_dump_json() + "\n"
            after = rows[-1].sequence

    async def verify(self) -> AuditReport:
        """Check every event against the chain and the anchor; reads in pieces, off the loop."""
        key = await self.database.read(self.sealed_key)
        if key is None:
            empty = await self.database.read(newest) is None
            return report(0, START, None if empty else ("edited", 1))
        # First the anchor: events that come while we read are behind it.
        try:
            anchored = self.anchor.read(key)
        except ValueError:
            return report(0, START, ("anchor-forged", None))
        chain, sequence = START, 0
        while rows := await self.database.read(partial(rows_after, sequence, VERIFY_ROWS)):
            for row in rows:
                if row.sequence != sequence + 1:
                    return report(sequence, chain, ("deleted", sequence + 1))
                if link(key, chain, tuple(row)[: len(FIELDS)]) != row.chain:
                    return report(sequence, chain, ("edited", row.sequence))
                chain, sequence = row.chain, row.sequence
                if anchored and anchored.sequence == sequence and anchored.chain != chain:
                    return report(sequence, chain, ("tail-cut", sequence))
        if anchored is None and sequence:
            return report(sequence, chain, ("anchor-missing", None))
        if anchored and anchored.sequence > sequence:
            return report(sequence, chain, ("tail-cut", sequence + 1))
        tail = await self.database.read(newest)
        if tail and tail.seal_revision > await self.database.read(self.sealer.revision):
            return report(sequence, chain, ("rolled-back", None))
        return report(sequence, chain, None)

    async def accept(self, why: AuditEvent) -> None:
        """Take sealed values and log as they stand for the truth, after a restore, and log that."""

        def work(connection: Connection) -> tuple[bytes, AuditRecord]:
            tail = newest(connection)
            self.sealer.accept(connection, at_least=tail.seal_revision if tail else 0)
            return self._chain_key(connection), self.append(connection, why)

        key, record = await self.database.write(work)
        self.anchor.move(key, Mark(record.sequence, record.chain), back=True)

    def sealed_key(self, connection: Connection) -> bytes | None:
        """Return the chain's key, none where there is none yet."""
        try:
            return self.sealer.get(connection, KEY_NAME)
        except NotFound:
            return None

    def _chain_key(self, connection: Connection) -> bytes:
        key = self.sealed_key(connection)
        if key is None:
            if newest(connection) is not None:
                raise SealBroken(
                    "The audit log's key is gone although there are events. Restore the database "
                    "from a backup."
                )
            key = secrets.token_bytes(KEY_BYTES)
            self.sealer.put(connection, KEY_NAME, key)
        return key

    def _remember(self, connection: Connection, key: bytes, tail: Any, head: Mark) -> None:
        """Note the head for when the transaction has committed."""
        info = connection.info
        if self._mine not in info:
            info[self._mine] = (key, self._continues(connection, key, tail), head)
        else:
            info[self._mine] = (*info[self._mine][:2], head)

    def _continues(self, connection: Connection, key: bytes, tail: Any) -> bool:
        """Tell whether the log still has the anchored head, so that the anchor may move on."""
        try:
            anchored = self.anchor.read(key)
        except (ValueError, OSError):
            return False
        if anchored is None:
            return tail is None
        chain = audit_events.c.chain
        there = select(chain).where(audit_events.c.sequence == anchored.sequence)
        continues = connection.scalar(there) == anchored.chain
        if not continues:
            log.error("the audit log does not reach its anchor: run `uait doctor --security`")
        return continues

    def _forget(self, connection: Connection) -> None:
        connection.info.pop(self._mine, None)

    def _committed(self, _connection: Any, record: Any) -> None:
        """Move the anchor: a connection comes back after its transaction has ended."""
        found = record.info.pop(self._mine, None)
        if found is None:
            return
        key, continues, head = found
        if not continues:
            return
        try:
            self.anchor.move(key, head)
        except (OSError, ValueError):
            log.exception("the audit log's anchor %s cannot be written", self.anchor.path)


def newest(connection: Connection) -> Any:
    """Return the last row."""
    column = audit_events.c
    return connection.execute(
        select(column.sequence, column.chain, column.seal_revision)
        .order_by(column.sequence.desc())
        .limit(1)
    ).first()


def rows_after(sequence: int, limit: int, connection: Connection) -> list[Any]:
    """Return rows in order, their `FIELDS` first, then `chain`."""
    column = audit_events.c
    return list(
        connection.execute(
            select(*(column[name] for name in FIELDS), column.chain)
            .where(column.sequence > sequence)
            .order_by(column.sequence)
            .limit(limit)
        )
    )


def record_of(row: Any) -> AuditRecord:
    """Turn a row into a record; what is in the log is not cleaned again."""
    detail = row["detail"]
    values = {**row, "detail": json.loads(detail) if isinstance(detail, str) else detail}
    return AuditRecord.model_construct(**values)


SAYS: dict[Break, str] = {
    "edited": "Event {sequence} is not what was written.",
    "deleted": "Event {sequence} is missing.",
    "tail-cut": "The newest events, from {sequence} on, were cut off or replaced.",
    "anchor-missing": "The anchor file is gone: nobody can tell whether newest events are missing.",
    "anchor-forged": "The anchor file was not written by this log.",
    "rolled-back": "The sealed values are older than the log: somebody put them back.",
}


def report(checked: int, head: str, found: tuple[Break, int | None] | None) -> AuditReport:
    """Put what was found into words."""
    if found is None:
        return AuditReport(
            intact=True, checked=checked, head=head, detail=f"All {checked:,} events hold."
        )
    kind, sequence = found
    said = SAYS[kind].format(sequence=sequence)
    return AuditReport(
        intact=False,
        checked=checked,
        head=head,
        kind=kind,
        sequence=sequence,
        detail=f"{said} Compare with your last export, and find out who can write the database.",
    )
