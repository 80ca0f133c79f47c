"""One-time links: the first set-up, invitations, password resets.

The secret stands in the fragment of the link's URL, which browsers send to no server, so that it is
in no access log. It is stored as its SHA-256, expires, and is used up in the transaction that does
what it was for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Connection, delete, select, update

from uait_server_ext.errors import LinkUnusable
from uait_server_ext.events.audit import AuditLog
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, new_secret, now

from .tables import links, users

Purpose = Literal["setup", "invitation", "reset"]

LIFETIME_SECONDS: dict[Purpose, float] = {
    "setup": 24 * 3600.0,
    "invitation": 7 * 24 * 3600.0,
    "reset": 24 * 3600.0,
}
PAGES: dict[Purpose, str] = {
    "setup": "uait/setup",
    "invitation": "uait/invitation",
    "reset": "uait/password-reset",
}


@dataclass(frozen=True, slots=True)
class IssuedLink:
    """A link that was just made; its secret is known to nobody else."""

    purpose: Purpose
    secret: str = field(repr=False)
    expires_at: float

    def url(self, server: str) -> str:
        """Return the link below a server's address, which ends with its base path."""
        return f"{server.rstrip('/')}/{PAGES[self.purpose]}#secret={self.secret}"


@dataclass(frozen=True, slots=True)
class Link:
    """What a link is for."""

    purpose: Purpose
    user_id: str | None
    role: str | None
    created_by: str | None


class Links:
    """Makes links and uses them up."""

    def __init__(self, database: Database, audit: AuditLog, clock: Clock = now) -> None:
        self.database = database
        self.audit = audit
        self.clock = clock

    def issue(
        self,
        connection: Connection,
        purpose: Purpose,
        *,
        user_id: str | None = None,
        role: str | None = None,
        created_by: str | None = None,
    ) -> IssuedLink:
        """Make a link; an older one to reset the same person's password is void."""
        at = self.clock()
        connection.execute(delete(links).where(links.c.expires_at <= at))
        if user_id:
            self.void(connection, user_id)
        issued = IssuedLink(purpose, new_secret("link"), at + LIFETIME_SECONDS[purpose])
        connection.execute(
            links.insert().values(
                secret_sha256=digest(issued.secret),
                purpose=purpose,
                user_id=user_id,
                role=role,
                created_by=created_by,
                created_at=at,
                expires_at=issued.expires_at,
            )
        )
        return issued

    async def first_setup(self) -> IssuedLink | None:
        """Make the link to the first administrator's account, none where there is anybody."""

        def work(connection: Connection) -> IssuedLink | None:
            if connection.execute(select(users.c.id).limit(1)).first():
                return None
            connection.execute(delete(links).where(links.c.purpose == "setup"))
            return self.issue(connection, "setup")

        return await self.database.write(work)

    async def look(self, purpose: Purpose, secret: str) -> Link:
        """Return what a link is for without using it up.

        Raises:
            LinkUnusable: it is unknown, was used, or has expired.
        """
        return await self.database.read(lambda connection: self._find(connection, purpose, secret))

    def use(self, connection: Connection, purpose: Purpose, secret: str) -> Link:
        """Use a link up; of two at once one finds it used.

        Raises:
            LinkUnusable: it is unknown, was used, or has expired.
        """
        link = self._find(connection, purpose, secret)
        used = connection.execute(
            update(links)
            .where(links.c.secret_sha256 == digest(secret), links.c.used_at.is_(None))
            .values(used_at=self.clock())
        )
        if used.rowcount != 1:
            raise unusable()
        return link

    def void(self, connection: Connection, user_id: str) -> None:
        """Make the unused links to a person's account worthless."""
        connection.execute(
            delete(links).where(links.c.user_id == user_id, links.c.used_at.is_(None))
        )

    def _find(self, connection: Connection, purpose: Purpose, secret: str) -> Link:
        row = connection.execute(
            select(links).where(
                links.c.secret_sha256 == digest(secret),
                links.c.purpose == purpose,
                links.c.used_at.is_(None),
                links.c.expires_at > self.clock(),
            )
        ).one_or_none()
        if row is None:
            raise unusable()
        return Link(purpose, row.user_id, row.role, row.created_by)


def unusable() -> LinkUnusable:
    """Say that a link is worthless, and not why: that is nobody's business who guesses."""
    return LinkUnusable(
        "This link is not valid: it was used, has expired, or was replaced. Ask for a new one."
    )


def digest(secret: str) -> str:
    """Return the SHA-256 under which a link is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
