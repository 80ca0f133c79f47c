"""`Idempotency-Key`: a request that is sent again is answered again, not carried out again.

For operations that change something and answer once (no stream). The first request with a key
reserves it; its success is kept for 24 hours and given to every repetition by the same principal.
A failure is not kept: nothing was done, so that the same key may try again. Answers that hold a
secret are not kept either; their repetition is told that the work was done.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uait_server_ext.errors import Conflict, InvalidInput
from uait_server_ext.storage.ids import Clock, now

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from uait_server_ext.storage.database import Database

METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
KEEP_SECONDS = 24 * 3600.0
LEASE_SECONDS = 600.0
"""A request that has run for so long died with its server: its key may be used again."""

MAX_KEPT_BYTES = 1 << 20
KEY = re.compile(r"[\x21-\x7e]{1,100}")
NOT_KEPT = "application/x-not-kept"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer that the first request had."""

    status: int
    content_type: str
    body: bytes


def idempotency_key(method: str, headers: Mapping[str, str]) -> str | None:
    """Return the key of a request that may change something, if it has one.

    Raises:
        InvalidInput: the key is empty, too long or not printable.
    """
    written = headers.get("Idempotency-Key")
    if written is None or method not in METHODS:
        return None
    key = written.strip().strip('"')  # a quoted string in the IETF draft, bare with most clients
    if not KEY.fullmatch(key):
        raise InvalidInput("Idempotency-Key: send 1 to 100 printable characters, such as a UUID.")
    return key


def request_digest(method: str, uri: str, body: bytes) -> str:
    """Return what makes two requests the same: method, path with query, body."""
    digest = hashlib.sha256(f"{method} {uri}\n".encode())
    digest.update(body)
    return digest.hexdigest()


class IdempotencyKeys:
    """Reserve keys and keep answers, in the database: for all servers on it, and over restarts."""

    def __init__(self, database: Database, clock: Clock = now) -> None:
        self.database = database
        self.clock = clock

    async def begin(self, principal: str, key: str, digest: str) -> KeptAnswer | None:
        """Reserve a key for a request, or return the answer that it had before.

        Whoever gets None carries the request out and then calls `keep` or `release`.

        Raises:
            InvalidInput: the key was used for another request.
            Conflict: the first request still runs, or its answer was not kept.
        """
        return await self.database.write(
            lambda connection: self._begin(connection, principal, key, digest)
        )

    def _begin(
        self, connection: Connection, principal: str, key: str, digest: str
    ) -> KeptAnswer | None:
        from sqlalchemy import delete, insert, or_, select
        from sqlalchemy.exc import IntegrityError

        from uait_server_ext.identity.tables import idempotency_keys as table

        at = self.clock()
        connection.execute(
            delete(table).where(
                or_(
                    table.c.created_at < at - KEEP_SECONDS,
                    table.c.status.is_(None) & (table.c.created_at < at - LEASE_SECONDS),
                )
            )
        )
        mine = (table.c.principal == principal) & (table.c.key == key)
        try:
            with connection.begin_nested():
                connection.execute(
                    insert(table).values(
                        principal=principal, key=key, request_sha256=digest, created_at=at
                    )
                )
        except IntegrityError:
            row = connection.execute(select(table).where(mine)).one()
        else:
            return None
        if row.request_sha256 != digest:
            raise InvalidInput(
                "This Idempotency-Key was used for another request. Take a new key for each."
            )
        if row.status is None:
            raise Conflict(
                "The first request with this Idempotency-Key still runs. Wait for it.",
                retry_after=1,
            )
        if row.content_type == NOT_KEPT:
            raise Conflict(
                "The request with this Idempotency-Key was carried out; its answer was shown once "
                "and is not kept."
            )
        return KeptAnswer(row.status, row.content_type, row.body)

    async def keep(
        self, principal: str, key: str, status: int, content_type: str, body: bytes | None
    ) -> None:
        """Keep an answer for repetitions; None for one that holds a secret."""
        kept = body is not None and len(body) <= MAX_KEPT_BYTES

        def work(connection: Connection) -> None:
            from sqlalchemy import update

            from uait_server_ext.identity.tables import idempotency_keys as table

            connection.execute(
                update(table)
                .where(table.c.principal == principal, table.c.key == key)
                .values(
                    status=status,
                    content_type=content_type if kept else NOT_KEPT,
                    body=body if kept else b"",
                )
            )

        await self.database.write(work)

    async def release(self, principal: str, key: str) -> None:
        """Give a key back after a failure: the request may be sent again with it."""

        def work(connection: Connection) -> None:
            from sqlalchemy import delete

            from uait_server_ext.identity.tables import idempotency_keys as table

            connection.execute(
                delete(table).where(
                    table.c.principal == principal, table.c.key == key, table.c.status.is_(None)
                )
            )

        await self.database.write(work)
