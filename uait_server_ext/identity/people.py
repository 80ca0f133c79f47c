"""What the tables say of people: their standing, their credentials, who administers.

Plain functions in the caller's transaction. The rules of changing any of it are `directory.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, func, or_, select, union, update

from uait_server_ext.errors import NotFound

from .models import UserInfo
from .principal import ROLES
from .tables import group_members, role_grants, users

if TYPE_CHECKING:
    from sqlalchemy import Row

ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a person is and may do now, their groups' roles included."""

    user_id: str
    username: str
    display_name: str
    roles: frozenset[str]
    permissions: frozenset[str]
    epoch: int
    disabled: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a login by password is checked against."""

    user_id: str
    username: str
    display_name: str
    password_hash: str | None = field(repr=False)
    epoch: int
    disabled: bool


def find(connection: Connection, user_id: str) -> Row[Any]:
    """Return a person's row.

    Raises:
        NotFound: nobody has that id.
    """
    row = connection.execute(select(users).where(users.c.id == user_id)).one_or_none()
    if row is None:
        raise no_such_user()
    return row


def no_such_user() -> NotFound:
    """Say that nobody has the id."""
    return NotFound("There is no such user. List them to see who there is.")


def credentials(row: Row[Any]) -> Credentials:
    """Read credentials from a person's row."""
    return Credentials(
        user_id=row.id,
        username=row.username,
        display_name=row.display_name,
        password_hash=row.password_hash,
        epoch=row.epoch,
        disabled=row.disabled_at is not None,
    )


def user_info(connection: Connection, row: Row[Any]) -> UserInfo:
    """Describe a person from their row."""
    member = select(group_members.c.group_name).where(group_members.c.user_id == row.id)
    return UserInfo(
        id=row.id,
        username=row.username,
        display_name=row.display_name,
        email=row.email,
        roles=sorted(direct_roles(connection, role_grants.c.user_id == row.id)),
        groups=sorted(connection.scalars(member)),
        disabled=row.disabled_at is not None,
        has_password=row.password_hash is not None,
        created_at=row.created_at,
    )


def direct_roles(connection: Connection, to: ColumnElement[bool]) -> frozenset[str]:
    """Return the roles granted to one person or one group."""
    return frozenset(connection.scalars(select(role_grants.c.role).where(to)))


def effective_roles(connection: Connection, user_id: str) -> frozenset[str]:
    """Return a person's roles, those of their groups included."""
    of = select(group_members.c.group_name).where(group_members.c.user_id == user_id)
    return direct_roles(
        connection, or_(role_grants.c.user_id == user_id, role_grants.c.group_name.in_(of))
    )


def permissions_of(roles: Iterable[str]) -> frozenset[str]:
    """Return what roles allow together; a role that is no more allows nothing."""
    return frozenset().union(*(ROLES.get(role, frozenset()) for role in roles))


def administrators(connection: Connection) -> int:
    """Count the people who are administrators and not disabled."""
    admin = role_grants.c.role == ADMIN
    direct = select(role_grants.c.user_id).where(admin, role_grants.c.user_id.is_not(None))
    through = (
        select(group_members.c.user_id)
        .join(role_grants, role_grants.c.group_name == group_members.c.group_name)
        .where(admin)
    )
    holders = union(direct, through).subquery()
    enabled = select(func.count()).where(
        users.c.id.in_(select(holders.c.user_id)), users.c.disabled_at.is_(None)
    )
    return connection.scalar(enabled) or 0


def grant(
    connection: Connection,
    roles: Iterable[str],
    *,
    user_id: str | None = None,
    group_name: str | None = None,
) -> None:
    """Write down roles of a person or of a group."""
    for role in sorted(roles):
        connection.execute(
            role_grants.insert().values(role=role, user_id=user_id, group_name=group_name)
        )


def raise_epoch(connection: Connection, user_ids: Iterable[str]) -> None:
    """End every session and token of these people."""
    for user_id in user_ids:
        connection.execute(
            update(users).where(users.c.id == user_id).values(epoch=users.c.epoch + 1)
        )
