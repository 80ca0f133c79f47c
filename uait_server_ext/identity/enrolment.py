"""How people come to have an account: the first set-up, invitations, and password resets by link.

A link is looked at before the password is hashed, and used up in the transaction that makes or
changes the account: a weak password does not cost the link, and no link makes two accounts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from uait_server_ext.errors import Conflict, LinkUnusable, PermissionDenied

from . import names
from .directory import ADMIN, OPERATOR
from .links import IssuedLink, unusable
from .login import Client, LoggedIn, admit, note
from .passwords import check_new_password
from .principal import ROLES, Principal

if TYPE_CHECKING:
    from .links import Link, Purpose
    from .service import Identity


async def set_up(
    identity: Identity,
    secret: str,
    username: str,
    display_name: str | None,
    password: str,
    client: Client,
) -> LoggedIn:
    """Make the first person, an administrator, and log them in.

    Raises:
        PermissionDenied: there is somebody already, or the link is not the newest one.
        InvalidInput, WeakPassword: the name or the password is not acceptable.
    """
    try:
        await looked_at(identity, "setup", secret, client)
        hashed = await new_hash(identity, password, username, display_name)

        def work(connection: Connection) -> str:
            identity.links.use(connection, "setup", secret)
            if not identity.directory.empty(connection):
                raise unusable()
            return identity.directory.create(
                connection,
                replace(OPERATOR, id="setup"),
                username=username,
                display_name=display_name,
                roles=(ADMIN,),
                password_hash=hashed,
                address=client.address,
            )

        user_id = await identity.database.write(work)
    except LinkUnusable:
        await note(identity, "setup", "refused", names.claimed(username), client)
        raise PermissionDenied(
            "This set-up link is not valid. It works once, and only until somebody has an "
            "account; start the server again for a new one."
        ) from None
    return await admit(identity, user_id, ("password",), client)


async def invite(identity: Identity, actor: Principal, role: str, address: str) -> IssuedLink:
    """Make a link with which one person makes an account with a role.

    Raises:
        InvalidInput: there is no such role.
        PermissionDenied: the role allows more than the actor may do.
    """

    def work(connection: Connection) -> IssuedLink:
        identity.directory.may_grant(connection, actor, [role])
        identity.directory.record(connection, actor, address, "user.invite", role, {"role": role})
        return identity.links.issue(connection, "invitation", role=role, created_by=actor.id)

    return await identity.database.write(work)


async def accept(
    identity: Identity,
    secret: str,
    username: str,
    display_name: str | None,
    password: str,
    client: Client,
) -> LoggedIn:
    """Take up an invitation: make the account and log its owner in.

    Raises:
        LinkUnusable: the link is unknown, used or expired, or who made it may no longer.
        InvalidInput, WeakPassword, Conflict: the name or the password is not acceptable.
    """
    try:
        await looked_at(identity, "invitation", secret, client)
        hashed = await new_hash(identity, password, username, display_name)

        def work(connection: Connection) -> str:
            link = identity.links.use(connection, "invitation", secret)
            role = link.role
            if role is None or role not in ROLES or not link.created_by:
                raise unusable()
            inviter = Principal(
                id=link.created_by, name="inviter", permissions=OPERATOR.permissions
            )
            if not ROLES[role] <= identity.directory.powers(connection, inviter):
                raise unusable()  # whoever made the link could no longer give this role
            return identity.directory.create(
                connection,
                inviter,
                username=username,
                display_name=display_name,
                roles=(role,),
                password_hash=hashed,
                address=client.address,
            )

        user_id = await identity.database.write(work)
    except LinkUnusable:
        await note(identity, "invitation", "refused", names.claimed(username), client)
        raise
    return await admit(identity, user_id, ("password",), client)


async def reset_link(
    identity: Identity, actor: Principal, user_id: str, address: str
) -> IssuedLink:
    """Make a link with which a person sets a new password.

    Raises:
        NotFound: nobody has that id.
        PermissionDenied: the person may do more than the actor: the link would be a way up.
        Conflict: the person is disabled.
    """

    def work(connection: Connection) -> IssuedLink:
        identity.directory.may_govern(connection, actor, user_id)
        if identity.directory.credentials_of(connection, user_id).disabled:
            raise Conflict("This person is disabled. Enable them first.")
        identity.directory.record(connection, actor, address, "user.reset", user_id)
        return identity.links.issue(connection, "reset", user_id=user_id, created_by=actor.id)

    return await identity.database.write(work)


async def reset(identity: Identity, secret: str, password: str, client: Client) -> LoggedIn:
    """Set a new password by a link, which ends every login of the person, and begin a session.

    A second factor is asked for as at every login.

    Raises:
        LinkUnusable: the link is unknown, used or expired, or the person is not active.
        WeakPassword: the new password is too easy to guess.
    """
    try:
        link = await looked_at(identity, "reset", secret, client)
        user_id = link.user_id
        if user_id is None:
            raise unusable()
        mine = await identity.database.read(lambda c: identity.directory.credentials_of(c, user_id))
        hashed = await new_hash(identity, password, mine.username, mine.display_name)

        def work(connection: Connection) -> None:
            identity.links.use(connection, "reset", secret)
            if identity.directory.credentials_of(connection, user_id).disabled:
                raise unusable()
            identity.directory.set_password(connection, user_id, hashed)
            owner = Principal(id=user_id, name=mine.display_name)
            identity.directory.record(connection, owner, client.address, "password.reset", user_id)

        await identity.database.write(work)
    except LinkUnusable:
        await note(identity, "password.reset", "refused", "unknown", client)
        raise
    await identity.sessions.end_all(user_id)
    return await admit(identity, user_id, ("password",), client)


async def looked_at(identity: Identity, purpose: Purpose, secret: str, client: Client) -> Link:
    """Look at a link; one that is not valid counts against the address.

    Raises:
        LinkUnusable: it is not valid.
        TooManyAttempts: too many were not.
    """
    attempt = await identity.throttle.link(client.address)
    link = await identity.links.look(purpose, secret)
    await identity.throttle.withdraw(attempt)
    return link


async def new_hash(
    identity: Identity, password: str, username: str, display_name: str | None
) -> str:
    """Return the hash of a new person's password.

    Raises:
        InvalidInput, WeakPassword: the name or the password is not acceptable.
    """
    name, _ = names.username(username)
    shown = names.display_name(display_name) if display_name else name
    check_new_password(password, name, shown)
    return await identity.passwords.hash(password)
