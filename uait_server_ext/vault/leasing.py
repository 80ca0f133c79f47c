"""Leases: the right to use a secret for a while, inside the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from uait_server_ext.errors import NotFound

from .models import SHARED, Lease
from .tables import leases, secrets

KEEP_ENDED_SECONDS = 30 * 86_400
"""Ended leases are listed so long; the audit log has them for good."""

Refusal = Literal["unknown", "revoked", "expired", "used-up", "secret-gone"]

WHY: dict[Refusal, str] = {
    "unknown": "There is no such lease",
    "revoked": "The lease was revoked",
    "expired": "The lease has expired",
    "used-up": "The lease has been used as often as it allows",
    "secret-gone": "The lease's holder may no longer use the secret",
}


@dataclass(frozen=True, slots=True)
class Granted:
    """A use that was counted: the lease and its secret's row."""

    lease: Row[Any]
    secret: Row[Any]


def add(connection: Connection, lease: Lease, principal: str) -> None:
    """Write a lease; ones that ended long ago go."""
    connection.execute(
        delete(leases).where(leases.c.expires_at < lease.created_at - KEEP_ENDED_SECONDS)
    )
    connection.execute(
        insert(leases).values(
            id=lease.id,
            secret_id=lease.secret,
            principal=principal,
            purpose=lease.purpose,
            created_at=lease.created_at,
            expires_at=lease.expires_at,
            uses=0,
            max_uses=lease.max_uses,
        )
    )


def count_use(connection: Connection, lease_id: str, at: float) -> Granted | Refusal:
    """Count one use of a lease, or say why not; two at once cannot pass its limit."""
    column = leases.c
    lease = connection.execute(select(leases).where(column.id == lease_id)).first()
    if lease is None:
        return "unknown"
    if lease.revoked_at is not None:
        return "revoked"
    if lease.expires_at <= at:
        return "expired"
    counted = connection.execute(
        update(leases)
        .where(
            column.id == lease_id,
            column.revoked_at.is_(None),
            or_(column.max_uses.is_(None), column.uses < column.max_uses),
        )
        .values(uses=column.uses + 1)
    )
    if not counted.rowcount:
        return "used-up"
    secret = connection.execute(
        select(secrets).where(
            secrets.c.id == lease.secret_id, secrets.c.owner.in_((lease.principal, SHARED))
        )
    ).first()
    return Granted(lease, secret) if secret else "secret-gone"


def of_principal(connection: Connection, principal: str) -> list[Lease]:
    """Return a principal's leases, newest first."""
    mine = select(leases).where(leases.c.principal == principal)
    return [lease_of(row) for row in connection.execute(mine.order_by(leases.c.created_at.desc()))]


def revoke(connection: Connection, principal: str, lease_id: str, at: float) -> Row[Any]:
    """End a lease of a principal's own; one that has ended stays as it is.

    Raises:
        NotFound: the principal has no such lease.
    """
    column = leases.c
    mine = (column.id == lease_id, column.principal == principal)
    lease = connection.execute(select(leases).where(*mine)).first()
    if lease is None:
        raise NotFound("You have no such lease.")
    connection.execute(
        update(leases).where(*mine, column.revoked_at.is_(None)).values(revoked_at=at)
    )
    return lease


def revoke_all(connection: Connection, principal: str, at: float) -> int:
    """End all leases of a principal; return how many."""
    column = leases.c
    return connection.execute(
        update(leases)
        .where(column.principal == principal, column.revoked_at.is_(None), column.expires_at > at)
        .values(revoked_at=at)
    ).rowcount


def lease_of(row: Row[Any]) -> Lease:
    """Turn a row into a lease."""
    return Lease(
        id=row.id,
        secret=row.secret_id,
        purpose=row.purpose,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        uses=row.uses,
        max_uses=row.max_uses,
    )
