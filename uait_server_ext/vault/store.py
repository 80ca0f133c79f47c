"""Rows and sealed values of secrets, inside the caller's transaction.

Every look-up has the owner in its WHERE clause: another's secret is as good as none. What decides
who gets which value (owner, name, current version, reference) is sealed once more as `secret:<id>`
and compared, so that it cannot be changed in the database.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from uait_server_ext.errors import Conflict, NotFound, SealBroken
from uait_server_ext.storage.sealing import Sealer

from .models import SHARED
from .tables import secret_versions, secrets

Secret = Row[Any]

KEEP_VERSIONS = 10


def visible(connection: Connection, owner: str, secret: str) -> Secret:
    """Return a secret by id or name; one's own comes before a shared one of the same name.

    Raises:
        NotFound: there is none for this owner.
    """
    column = secrets.c
    found = connection.execute(
        select(secrets)
        .where(column.owner.in_((owner, SHARED)), or_(column.id == secret, column.name == secret))
        .order_by(column.owner.desc())  # "*" sorts before letters and digits
        .limit(1)
    ).first()
    if found is None:
        raise NotFound("There is no such secret. List them with `uait vault list`.")
    return found


def all_visible(connection: Connection, owner: str) -> list[Secret]:
    """Return all secrets of an owner and the shared ones, by name."""
    mine = secrets.c.owner.in_((owner, SHARED))
    statement = select(secrets).where(mine).order_by(secrets.c.name, secrets.c.owner)
    return list(connection.execute(statement))


def owned(connection: Connection, owner: str) -> list[Secret]:
    """Return the secrets of exactly this owner (`*`: the shared ones)."""
    return list(connection.execute(select(secrets).where(secrets.c.owner == owner)))


def versions(connection: Connection, secret_id: str) -> list[Row[Any]]:
    """Return the versions of a secret, newest first."""
    column = secret_versions.c
    return list(
        connection.execute(
            select(secret_versions)
            .where(column.secret_id == secret_id)
            .order_by(column.version.desc())
        )
    )


def add(
    connection: Connection,
    sealer: Sealer,
    row: dict[str, Any],
    *,
    value: str | None,
    by: str,
    at: float,
) -> None:
    """Create a secret with its first version.

    Raises:
        Conflict: the owner has one of that name.
    """
    try:
        with connection.begin_nested():
            connection.execute(
                insert(secrets).values(**row, current=0, created_at=at, updated_at=at)
            )
    except IntegrityError:
        raise Conflict(
            f"There is a secret {row['name']} already. Set its value, or choose another name."
        ) from None
    add_version(
        connection, sealer, row["id"], value=value, reference=row["reference"], by=by, at=at
    )


def add_version(
    connection: Connection,
    sealer: Sealer,
    secret_id: str,
    *,
    value: str | None,
    reference: str | None,
    by: str,
    at: float,
) -> int:
    """Make a new version the current one; old ones beyond the limit are destroyed."""
    kept = versions(connection, secret_id)
    version = (kept[0].version if kept else 0) + 1
    connection.execute(
        insert(secret_versions).values(
            secret_id=secret_id, version=version, created_at=at, created_by=by
        )
    )
    if value is not None:
        sealer.put(connection, value_name(secret_id, version), value.encode())
    connection.execute(
        update(secrets)
        .where(secrets.c.id == secret_id)
        .values(current=version, reference=reference, updated_at=at)
    )
    row = connection.execute(select(secrets).where(secrets.c.id == secret_id)).one()
    sealer.put(connection, row_name(secret_id), facts(row))
    for old in kept[KEEP_VERSIONS - 1 :]:
        if old.destroyed_at is None:
            destroy(connection, sealer, secret_id, old.version, at)
    return version


def destroy(
    connection: Connection, sealer: Sealer, secret_id: str, version: int, at: float
) -> None:
    """Delete the value of one version for good; that it was there stays."""
    sealer.delete(connection, value_name(secret_id, version))
    column = secret_versions.c
    connection.execute(
        update(secret_versions)
        .where(column.secret_id == secret_id, column.version == version)
        .values(destroyed_at=at)
    )


def remove(connection: Connection, sealer: Sealer, secret_id: str) -> None:
    """Delete a secret with all its versions and leases."""
    for name in sealer.names(connection, value_name(secret_id, "")):
        sealer.delete(connection, name)
    sealer.delete(connection, row_name(secret_id))
    connection.execute(delete(secrets).where(secrets.c.id == secret_id))


def read_value(connection: Connection, sealer: Sealer, row: Secret, version: int) -> str:
    """Return the value of a version.

    Raises:
        NotFound: there is no such version, or it was destroyed.
        SealBroken: the row or the value is not what was sealed.
    """
    check(connection, sealer, row)
    return sealer.get(connection, value_name(row.id, version)).decode()


def check(connection: Connection, sealer: Sealer, row: Secret) -> None:
    """Compare a row with what was sealed of it.

    Raises:
        SealBroken: they differ.
    """
    try:
        sealed = sealer.get(connection, row_name(row.id))
    except NotFound:
        sealed = b""
    if sealed != facts(row):
        raise SealBroken(
            f"The secret {row.id} was changed in the database: its owner, name, version or "
            "reference is not what was sealed. Nothing was released. Find out who did it, then "
            "restore a backup."
        )


def facts(row: Secret) -> bytes:
    """Return what is sealed of a row."""
    return json.dumps([row.id, row.owner, row.name, row.current, row.reference]).encode()


def row_name(secret_id: str) -> str:
    """Return the name under which a row's facts are sealed."""
    return f"secret:{secret_id}"


def value_name(secret_id: str, version: int | str) -> str:
    """Return the name under which a value is sealed."""
    return f"secret:{secret_id}:{version}"
