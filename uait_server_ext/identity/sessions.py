"""Browser sessions: an opaque secret in the cookie, its SHA-256 and the session in a store.

A session ends when it has not been seen for `idle_seconds`, when it is `absolute_seconds` old, or
when it is ended. Its secret changes whenever its rank does: each factor makes a new session and
ends the one before, so that a secret planted in a browser is worth nothing after a login.

Two stores behave alike: `SqlSessions` here, and `RedisSessions` for several servers behind a
gateway. Whoever asks also compares `epoch` with the person's: that ends sessions in bulk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sqlalchemy import Connection, Row, and_, delete, insert, select, update

from uait_server_ext.errors import Unauthenticated
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, new_id, new_secret, now

from .tables import sessions

SECRET_PREFIX = "uaits"  # noqa: S105 - what a secret of this kind begins with
USER_AGENT_CHARACTERS = 200
ADDRESS_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long sessions last, in seconds, and how many one person has at once."""

    idle_seconds: float = 12 * 3600.0
    absolute_seconds: float = 7 * 24 * 3600.0
    pending_seconds: float = 10 * 60.0
    touch_seconds: float = 60.0
    per_user: int = 50


@dataclass(frozen=True, slots=True)
class Session:
    """One login in one browser.

    Attributes:
        id: what people see and revoke; opens nothing.
        authenticated_at: of the last full proof, for step-up.
        factors: what proved who it is: `password`, `totp`, `recovery`, `passkey`, `oidc`.
        pending: the second factor is still to come; good for nothing else.
    """

    id: str
    user_id: str
    epoch: int
    created_at: float
    last_seen_at: float
    authenticated_at: float
    factors: tuple[str, ...]
    pending: bool
    expires_at: float
    address: str
    user_agent: str


class Sessions(Protocol):
    """A store of sessions. Each method raises `Unavailable` where the store cannot be asked."""

    async def start(
        self,
        user_id: str,
        epoch: int,
        factors: Iterable[str],
        pending: bool,
        address: str,
        user_agent: str,
    ) -> tuple[str, Session]:
        """Begin a session; return its secret, known only to the browser from now on."""
        ...

    async def find(self, secret: str) -> Session | None:
        """Return the live session of a secret."""
        ...

    async def touch(self, secret: str) -> None:
        """Note that a session is in use; at most one write a minute."""
        ...

    async def upgrade(self, secret: str, factors: Iterable[str]) -> tuple[str, Session]:
        """Replace a session by one with more proof: new secret, new id, no longer pending.

        Raises:
            Unauthenticated: the session has ended, perhaps by another upgrade just now.
        """
        ...

    async def list(self, user_id: str) -> list[Session]:
        """Return a person's live sessions, the one last seen first."""
        ...

    async def end(self, user_id: str, session_id: str) -> bool:
        """End one session of a person; tell whether they had it."""
        ...

    async def end_all(self, user_id: str, except_id: str | None = None) -> int:
        """End a person's sessions, but for one; return how many ended."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...


def open_sessions(
    url: str, database: Database, clock: Clock = now, limits: SessionLimits | None = None
) -> Sessions:
    """Return the store that a URL names: the database where it is empty, else Redis."""
    if not url:
        return SqlSessions(database, clock, limits)
    from .redis_sessions import RedisSessions

    return RedisSessions(url, database, clock, limits)


class SqlSessions:
    """Sessions in the SQL database."""

    def __init__(
        self, database: Database, clock: Clock = now, limits: SessionLimits | None = None
    ) -> None:
        self.database = database
        self.clock = clock
        self.limits = limits or SessionLimits()

    async def start(
        self,
        user_id: str,
        epoch: int,
        factors: Iterable[str],
        pending: bool,
        address: str,
        user_agent: str,
    ) -> tuple[str, Session]:
        session = new_session(
            self.clock(), self.limits, user_id, epoch, factors, pending, address, user_agent
        )
        secret = new_secret(SECRET_PREFIX)

        def work(connection: Connection) -> None:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= session.created_at))
            mine = select(sessions).where(sessions.c.user_id == user_id)
            held = [read(row) for row in connection.execute(mine)]
            for surplus in beyond(held, self.limits.per_user - 1):
                connection.execute(delete(sessions).where(sessions.c.id == surplus.id))
                raise_generation(connection, "identity")
            connection.execute(insert(sessions).values(**written(secret, session)))

        await self.database.write(work)
        return secret, session

    async def find(self, secret: str) -> Session | None:
        return await self.database.read(lambda connection: self._find(connection, secret))

    async def touch(self, secret: str) -> None:
        at = self.clock()
        due = and_(
            sessions.c.secret_sha256 == digest(secret),
            sessions.c.last_seen_at <= at - self.limits.touch_seconds,
            # A session that has ended does not come back by being used.
            sessions.c.last_seen_at > at - self.limits.idle_seconds,
            sessions.c.expires_at > at,
        )
        if await self.database.read(lambda c: c.execute(select(sessions.c.id).where(due)).first()):
            await self.database.write(
                lambda c: c.execute(update(sessions).where(due).values(last_seen_at=at))
            )

    async def upgrade(self, secret: str, factors: Iterable[str]) -> tuple[str, Session]:
        fresh = new_secret(SECRET_PREFIX)

        def work(connection: Connection) -> Session:
            old = self._find(connection, secret)
            gone = connection.execute(
                delete(sessions).where(sessions.c.secret_sha256 == digest(secret))
            )
            if old is None or gone.rowcount != 1:
                raise session_ended()
            session = upgraded(old, self.clock(), self.limits, factors)
            connection.execute(insert(sessions).values(**written(fresh, session)))
            raise_generation(connection, "identity")
            return session

        return fresh, await self.database.write(work)

    async def list(self, user_id: str) -> list[Session]:
        mine = select(sessions).where(sessions.c.user_id == user_id)
        rows = await self.database.read(lambda connection: connection.execute(mine).all())
        return newest_first(live(map(read, rows), self.clock(), self.limits))

    async def end(self, user_id: str, session_id: str) -> bool:
        return bool(
            await self._end((sessions.c.user_id == user_id) & (sessions.c.id == session_id))
        )

    async def end_all(self, user_id: str, except_id: str | None = None) -> int:
        return await self._end(
            (sessions.c.user_id == user_id) & (sessions.c.id != (except_id or ""))
        )

    async def close(self) -> None:
        """Do nothing: the database is not ours to close."""

    async def _end(self, which: Any) -> int:
        def work(connection: Connection) -> int:
            ended = connection.execute(delete(sessions).where(which)).rowcount
            if ended:
                raise_generation(connection, "identity")
            return ended

        return await self.database.write(work)

    def _find(self, connection: Connection, secret: str) -> Session | None:
        by_secret = select(sessions).where(sessions.c.secret_sha256 == digest(secret))
        row = connection.execute(by_secret).one_or_none()
        return next(live([read(row)] if row else [], self.clock(), self.limits), None)


# What both stores share.


def new_session(
    at: float,
    limits: SessionLimits,
    user_id: str,
    epoch: int,
    factors: Iterable[str],
    pending: bool,
    address: str,
    user_agent: str,
) -> Session:
    """Describe a session that begins now."""
    return Session(
        id=new_id("ses"),
        user_id=user_id,
        epoch=epoch,
        created_at=at,
        last_seen_at=at,
        authenticated_at=0.0 if pending else at,
        factors=tuple(factors),
        pending=pending,
        expires_at=at + (limits.pending_seconds if pending else limits.absolute_seconds),
        address=address[:ADDRESS_CHARACTERS],
        user_agent=user_agent[:USER_AGENT_CHARACTERS],
    )


def upgraded(old: Session, at: float, limits: SessionLimits, factors: Iterable[str]) -> Session:
    """Describe the session that follows one; its whole life is still counted from its login."""
    return replace(
        old,
        id=new_id("ses"),
        last_seen_at=at,
        authenticated_at=at,
        factors=tuple(dict.fromkeys((*old.factors, *factors))),
        pending=False,
        expires_at=old.created_at + limits.absolute_seconds,
    )


def live(found: Iterable[Session], at: float, limits: SessionLimits) -> Iterator[Session]:
    """Leave out the sessions that are too old or were not used for too long."""
    for session in found:
        if at < session.expires_at and at < session.last_seen_at + limits.idle_seconds:
            yield session


def newest_first(found: Iterable[Session]) -> list[Session]:
    """Order sessions by when they were last seen."""
    return sorted(found, key=lambda s: (s.last_seen_at, s.created_at, s.id), reverse=True)


def beyond(held: Iterable[Session], count: int) -> list[Session]:
    """Return the sessions that are too many: the ones not seen for the longest."""
    return newest_first(held)[max(count, 0) :]


def session_ended() -> Unauthenticated:
    """Say that a session is over."""
    return Unauthenticated("Your session has ended. Log in again.")


def digest(secret: str) -> str:
    """Return under what a session is stored: the SHA-256 of its secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read(row: Row[Any]) -> Session:
    """Read a session from its row."""
    fields = row._asdict()
    del fields["secret_sha256"]
    return Session(**fields | {"factors": tuple(row.factors.split())})


def written(secret: str, session: Session) -> dict[str, Any]:
    """Return the row of a session."""
    fields = {name: getattr(session, name) for name in Session.__slots__}
    return fields | {"secret_sha256": digest(secret), "factors": " ".join(session.factors)}
