"""Groups: people who share roles. Kept under the same rules as people (`Directory.guarded`)."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, select
from sqlalchemy.exc import IntegrityError

from uait_server_ext.errors import InvalidInput, NotFound

from . import names
from .directory import Detail, Directory
from .models import GroupInfo
from .people import direct_roles, grant, raise_epoch
from .principal import ROLES, Principal
from .tables import group_members, groups, role_grants, users


class Groups:
    """The groups of one server."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    async def all(self) -> list[GroupInfo]:
        """Return the groups by name."""

        def look(connection: Connection) -> list[GroupInfo]:
            found = connection.scalars(select(groups.c.name).order_by(groups.c.name)).all()
            return [group_info(connection, name) for name in found]

        return await self.directory.database.read(look)

    async def get(self, name: str) -> GroupInfo:
        """Return a group.

        Raises:
            NotFound: no group has that name.
        """
        return await self.directory.database.read(lambda c: existing(c, name))

    async def put(
        self,
        actor: Principal,
        name: str,
        roles: Iterable[str],
        members: Iterable[str],
        *,
        address: str | None = None,
    ) -> GroupInfo:
        """Make a group, or change what it is.

        Raises:
            InvalidInput: a name, role or member that cannot be.
            PermissionDenied: the actor does not hold what the group's roles allow, before or after.
            Conflict: no administrator would be left.
        """
        names.group_name(name)
        wanted, people = frozenset(roles), frozenset(members)

        def work(connection: Connection) -> GroupInfo:
            with self.directory.guarded(connection):
                before = group_info(connection, name)
                had = ROLES.keys() & before.roles
                self.directory.may_grant(connection, actor, sorted(wanted | had))
                if not exists(connection, name):
                    at = self.directory.clock()
                    connection.execute(groups.insert().values(name=name, created_at=at))
                changed = people ^ set(before.members)
                if wanted != set(before.roles):
                    changed |= people | set(before.members)
                empty(connection, name)
                grant(connection, wanted, group_name=name)
                for user_id in sorted(people):
                    add(connection, name, user_id)
                raise_epoch(connection, sorted(changed))
                given: Detail = {"roles": " ".join(sorted(wanted)), "members": len(people)}
                self.directory.record(connection, actor, address, "group.put", name, given)
                return group_info(connection, name)

        return await self.directory.database.write(work)

    async def delete(self, actor: Principal, name: str, *, address: str | None = None) -> None:
        """Remove a group; its members lose its roles.

        Raises:
            NotFound, PermissionDenied, Conflict: as for `put`.
        """

        def work(connection: Connection) -> None:
            with self.directory.guarded(connection):
                before = existing(connection, name)
                self.directory.may_grant(connection, actor, sorted(ROLES.keys() & before.roles))
                empty(connection, name)
                connection.execute(delete(groups).where(groups.c.name == name))
                raise_epoch(connection, before.members)
                self.directory.record(connection, actor, address, "group.delete", name)

        await self.directory.database.write(work)


def exists(connection: Connection, name: str) -> bool:
    """Tell whether there is a group of that name."""
    return (
        connection.execute(select(groups.c.name).where(groups.c.name == name)).first() is not None
    )


def existing(connection: Connection, name: str) -> GroupInfo:
    """Describe a group.

    Raises:
        NotFound: no group has that name.
    """
    if not exists(connection, name):
        raise NotFound("There is no such group. List them to see which there are.")
    return group_info(connection, name)


def group_info(connection: Connection, name: str) -> GroupInfo:
    """Describe a group, an empty one where there is none of that name."""
    members = select(group_members.c.user_id).where(group_members.c.group_name == name)
    return GroupInfo(
        name=name,
        roles=sorted(direct_roles(connection, role_grants.c.group_name == name)),
        members=sorted(connection.scalars(members)),
    )


def empty(connection: Connection, name: str) -> None:
    """Take roles and members from a group."""
    connection.execute(delete(role_grants).where(role_grants.c.group_name == name))
    connection.execute(delete(group_members).where(group_members.c.group_name == name))


def add(connection: Connection, name: str, user_id: str) -> None:
    """Make a person a member.

    Raises:
        InvalidInput: nobody has that id.
    """
    if connection.execute(select(users.c.id).where(users.c.id == user_id)).first() is None:
        raise InvalidInput(f"There is no user with the id {names.claimed(user_id)!r}.")
    try:
        connection.execute(group_members.insert().values(group_name=name, user_id=user_id))
    except IntegrityError:  # deleted between the two statements
        raise InvalidInput("A member was deleted in the meantime. Try again.") from None
