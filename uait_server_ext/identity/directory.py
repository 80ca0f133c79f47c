"""People, their roles and groups: who there is and what each may do.

Everything that changes what a person may do raises the generation `identity` (no cached answer
outlives it) and the person's epoch (no session or token does). That first write also puts such
changes one after another on every database, so that of two administrators who remove each other
one finds that they are the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from uait_server_ext.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, new_id, now

from . import names
from .models import UserInfo
from .people import (
    ADMIN,
    Credentials,
    Standing,
    administrators,
    credentials,
    direct_roles,
    effective_roles,
    find,
    grant,
    no_such_user,
    permissions_of,
    raise_epoch,
    user_info,
)
from .principal import PERMISSIONS, ROLES, Principal
from .tables import role_grants, users

__all__ = [
    "ADMIN",
    "OPERATOR",
    "Credentials",
    "Detail",
    "Directory",
    "Standing",
    "effective_roles",
    "raise_epoch",
]

GENERATION = "identity"
PERSON_PREFIX = "usr_"

Detail = Mapping[str, str | int | bool]

OPERATOR = Principal(
    id="operator",
    name="operator on the machine",
    kind="service",
    permissions=frozenset(PERMISSIONS),
)
"""Who runs `uait users` on the machine itself: they own the database and may do everything."""


class Directory:
    """The people of one server.

    Methods that take a connection work in the caller's transaction. `actor` is who asks for a
    change: nobody gives or takes what they do not hold, nor changes a person who may do more.
    `on_delete` is called in the transaction that deletes a person, before they are gone.
    """

    def __init__(self, database: Database, audit: AuditLog, clock: Clock = now) -> None:
        self.database = database
        self.audit = audit
        self.clock = clock
        self.on_delete: list[Callable[[Connection, str], object]] = []

    # What there is.

    def is_active(self, connection: Connection, user_id: str) -> bool:
        """Tell whether a person is there and not disabled."""
        standing = self.standing(connection, user_id)
        return standing is not None and not standing.disabled

    def standing(self, connection: Connection, user_id: str) -> Standing | None:
        """Return what a person may do, none where there is nobody of that id."""
        row = connection.execute(select(users).where(users.c.id == user_id)).one_or_none()
        if row is None:
            return None
        roles = effective_roles(connection, user_id)
        return Standing(
            user_id=row.id,
            username=row.username,
            display_name=row.display_name,
            roles=roles,
            permissions=permissions_of(roles),
            epoch=row.epoch,
            disabled=row.disabled_at is not None,
        )

    def credentials(self, connection: Connection, claimed_name: str) -> Credentials | None:
        """Return whom somebody claims to be by a user name."""
        key = names.username_key(claimed_name)
        found = connection.execute(select(users).where(users.c.username_key == key)).one_or_none()
        return credentials(found) if found and key else None

    def credentials_of(self, connection: Connection, user_id: str) -> Credentials:
        """Return a person's own credentials.

        Raises:
            NotFound: nobody has that id.
        """
        return credentials(find(connection, user_id))

    def empty(self, connection: Connection) -> bool:
        """Tell whether there is nobody yet."""
        return connection.execute(select(users.c.id).limit(1)).first() is None

    async def user(self, user_id: str) -> UserInfo:
        """Return a person.

        Raises:
            NotFound: nobody has that id.
        """
        return await self.database.read(lambda c: user_info(c, find(c, user_id)))

    async def user_named(self, username: str) -> UserInfo:
        """Return the person with a user name.

        Raises:
            NotFound: nobody has that name.
        """

        def look(connection: Connection) -> UserInfo:
            found = self.credentials(connection, username)
            if found is None:
                raise NotFound(f"Nobody is called {names.claimed(username)!r}.")
            return user_info(connection, find(connection, found.user_id))

        return await self.database.read(look)

    async def users(self, offset: int = 0, limit: int = 100) -> tuple[list[UserInfo], int]:
        """Return people by name, and how many there are in all."""

        def look(connection: Connection) -> tuple[list[UserInfo], int]:
            page = select(users).order_by(users.c.username_key).offset(offset).limit(limit)
            rows = connection.execute(page).all()
            total = connection.scalar(select(func.count()).select_from(users)) or 0
            return [user_info(connection, row) for row in rows], total

        return await self.database.read(look)

    # Changes.

    async def add(
        self,
        actor: Principal,
        username: str,
        *,
        display_name: str | None = None,
        roles: Iterable[str] = (),
        password_hash: str | None = None,
        address: str | None = None,
    ) -> str:
        """Add a person in a transaction of its own; see `create`."""
        return await self.database.write(
            lambda connection: self.create(
                connection,
                actor,
                username=username,
                display_name=display_name,
                roles=roles,
                password_hash=password_hash,
                address=address,
            )
        )

    def create(
        self,
        connection: Connection,
        actor: Principal,
        *,
        username: str,
        display_name: str | None = None,
        roles: Iterable[str] = (),
        password_hash: str | None = None,
        email: str | None = None,
        email_verified: bool = False,
        address: str | None = None,
    ) -> str:
        """Add a person and return their id.

        Raises:
            InvalidInput: a name or role that cannot be.
            Conflict: the name is taken.
            PermissionDenied: the actor does not hold what a role allows.
        """
        name, key = names.username(username)
        shown = names.display_name(display_name) if display_name else name
        granted = self._grantable(connection, actor, roles)
        user_id = new_id(PERSON_PREFIX.rstrip("_"))
        try:
            connection.execute(
                users.insert().values(
                    id=user_id,
                    username=name,
                    username_key=key,
                    display_name=shown,
                    email=email,
                    email_verified=email_verified,
                    password_hash=password_hash,
                    created_at=self.clock(),
                    epoch=0,
                )
            )
        except IntegrityError:
            raise Conflict(f"The user name {name!r} is taken. Choose another.") from None
        grant(connection, granted, user_id=user_id)
        raise_generation(connection, GENERATION)
        given = {"username": name, "roles": " ".join(sorted(granted))}
        self.record(connection, actor, address, "user.create", user_id, given)
        return user_id

    async def change(
        self,
        actor: Principal,
        user_id: str,
        *,
        display_name: str | None = None,
        roles: Iterable[str] | None = None,
        disabled: bool | None = None,
        address: str | None = None,
    ) -> UserInfo:
        """Change a person; what is None stays.

        Raises:
            NotFound: nobody has that id.
            Conflict: no administrator would be left.
            PermissionDenied: the actor may not give these roles or change this person.
        """
        wanted = None if roles is None else frozenset(roles)

        def work(connection: Connection) -> UserInfo:
            with self.guarded(connection):
                self.may_govern(connection, actor, user_id)
                before = find(connection, user_id)
                if display_name is not None:
                    self._rename(connection, user_id, display_name)
                direct = direct_roles(connection, role_grants.c.user_id == user_id)
                if wanted is not None and wanted != direct:
                    self._grantable(connection, actor, wanted)
                    connection.execute(delete(role_grants).where(role_grants.c.user_id == user_id))
                    grant(connection, wanted, user_id=user_id)
                    raise_epoch(connection, [user_id])
                    given = {"roles": " ".join(sorted(wanted))}
                    self.record(connection, actor, address, "user.roles", user_id, given)
                if disabled is not None and disabled != (before.disabled_at is not None):
                    at = self.clock() if disabled else None
                    connection.execute(
                        update(users).where(users.c.id == user_id).values(disabled_at=at)
                    )
                    raise_epoch(connection, [user_id])
                    action = "user.disable" if disabled else "user.enable"
                    self.record(connection, actor, address, action, user_id)
                return user_info(connection, find(connection, user_id))

        return await self.database.write(work)

    async def rename(self, user_id: str, display_name: str) -> UserInfo:
        """Change the name under which a person is shown."""

        def work(connection: Connection) -> UserInfo:
            self._rename(connection, user_id, display_name)
            raise_generation(connection, GENERATION)
            return user_info(connection, find(connection, user_id))

        return await self.database.write(work)

    async def delete(self, actor: Principal, user_id: str, *, address: str | None = None) -> None:
        """Remove a person with everything that is only theirs.

        Raises:
            NotFound, Conflict, PermissionDenied: as for `change`.
        """

        def work(connection: Connection) -> None:
            with self.guarded(connection):
                self.may_govern(connection, actor, user_id)
                username = find(connection, user_id).username
                for forget in self.on_delete:
                    forget(connection, user_id)
                connection.execute(delete(users).where(users.c.id == user_id))
                gone = {"username": username}
                self.record(connection, actor, address, "user.delete", user_id, gone)

        await self.database.write(work)

    def set_password(self, connection: Connection, user_id: str, password_hash: str) -> int:
        """Store the hash of a new password, which ends every login of the person.

        Returns:
            The epoch that a new session must carry.
        """
        connection.execute(
            update(users).where(users.c.id == user_id).values(password_hash=password_hash)
        )
        return self.end_everything(connection, user_id)

    def refresh_hash(self, connection: Connection, user_id: str, old: str, new: str) -> None:
        """Store the same password hashed at the costs of today, unless it has changed."""
        same = (users.c.id == user_id) & (users.c.password_hash == old)
        connection.execute(update(users).where(same).values(password_hash=new))

    def end_everything(self, connection: Connection, user_id: str) -> int:
        """End every session and token of a person and return their new epoch."""
        raise_generation(connection, GENERATION)
        raise_epoch(connection, [user_id])
        return int(find(connection, user_id).epoch)

    # Rules that every change keeps; groups.py keeps them too.

    @contextmanager
    def guarded(self, connection: Connection) -> Iterator[None]:
        """Make a change of who may do what: seen by every process, never without an administrator.

        Raises:
            Conflict: no enabled administrator would be left.
        """
        raise_generation(connection, GENERATION)  # first: it puts changes one after another
        had = administrators(connection)
        yield
        if had and not administrators(connection):
            raise Conflict(
                "Nobody would be left to administer this server. Make someone else an "
                "administrator first."
            )

    def may_govern(self, connection: Connection, actor: Principal, user_id: str) -> None:
        """Refuse an actor who may do less than the person they want to change.

        Raises:
            NotFound: nobody has that id.
            PermissionDenied: the person may do something that the actor may not.
        """
        target = self.standing(connection, user_id)
        if target is None:
            raise no_such_user()
        if beyond := target.permissions - self.powers(connection, actor):
            raise PermissionDenied(
                "This person may do more than you. Ask someone who holds as much.",
                permissions=sorted(beyond),
            )

    def may_grant(self, connection: Connection, actor: Principal, roles: Iterable[str]) -> None:
        """Refuse to pass on roles that allow more than the actor may do.

        Raises:
            InvalidInput: there is no such role.
            PermissionDenied: the actor does not hold all of it.
        """
        powers = self.powers(connection, actor)
        for role in roles:
            if role not in ROLES:
                raise InvalidInput(f"There is no role {role!r}. Roles: {', '.join(ROLES)}.")
            if beyond := ROLES[role] - powers:
                raise PermissionDenied(
                    f"You cannot give the role {role}: it allows more than you may do.",
                    permissions=sorted(beyond),
                )

    def powers(self, connection: Connection, actor: Principal) -> frozenset[str]:
        """Return what an actor may do at this very moment, whatever their request was let in by."""
        if not actor.id.startswith(PERSON_PREFIX):
            return actor.permissions  # a part of this server, such as the command or a provider
        standing = self.standing(connection, actor.id)
        if standing is None or standing.disabled:
            return frozenset()
        return actor.permissions & standing.permissions

    def record(
        self,
        connection: Connection,
        actor: Principal,
        address: str | None,
        action: str,
        target: str,
        detail: Detail | None = None,
    ) -> None:
        """Append to the audit log who did what to whom, and from where."""
        event = AuditEvent(
            action=action,
            outcome="ok",
            principal=actor.id,
            kind=actor.kind,
            address=address,
            target=target,
            detail=dict(detail or {}),
        )
        self.audit.append(connection, event)

    def _grantable(
        self, connection: Connection, actor: Principal, roles: Iterable[str]
    ) -> frozenset[str]:
        wanted = frozenset(roles)
        self.may_grant(connection, actor, sorted(wanted))
        return wanted

    def _rename(self, connection: Connection, user_id: str, display_name: str) -> None:
        shown = names.display_name(display_name)
        connection.execute(update(users).where(users.c.id == user_id).values(display_name=shown))
