"""Operations on oneself: profile, password, proof of who one is, sessions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.errors import NotFound
from uait_server_ext.identity.models import (
    PasswordChange,
    Profile,
    ProfileChange,
    Reauthenticate,
    SessionInfo,
    SessionList,
    UserInfo,
)

from .login import client

SessionId = Annotated[str, Field(max_length=40)]


@operation("GET", "/me", permission="account:read", rate="read")
async def me(call: Call) -> Profile:
    """Tell who one is and what one may do with the credential that was sent."""
    return profile(call, await call.services.identity.directory.user(call.principal.id))


@operation("PATCH", "/me", permission="account:write", rate="write")
async def change_me(call: Call, body: ProfileChange) -> Profile:
    """Change one's displayed name; roles and the like are not one's own to change."""
    identity = call.services.identity
    return profile(call, await identity.directory.rename(call.principal.id, body.display_name))


@operation("POST", "/me/password", permission="account:write", rate="login")
async def change_password(call: Call, body: PasswordChange) -> None:
    """Change one's password with the current one; every other session and token ends."""
    from uait_server_ext.identity import login

    secret = await login.change_password(
        call.services.identity,
        call.principal,
        body.current.get_secret_value(),
        body.new.get_secret_value(),
        client(call),
    )
    if secret:
        call.reply.set_session(secret)


@operation("POST", "/me/reauthenticate", permission="account:write", rate="login")
async def reauthenticate(call: Call, body: Reauthenticate) -> None:
    """Prove once more who one is, as sensitive operations ask; good for ten minutes.

    Who has an authenticator app sends a code of it, everyone else their password.
    """
    from uait_server_ext.identity import login

    secret = await login.reauthenticate(
        call.services.identity,
        call.principal,
        client(call),
        password=body.password.get_secret_value() if body.password else None,
        code=body.code.get_secret_value() if body.code else None,
    )
    call.reply.set_session(secret)


@operation("GET", "/me/sessions", permission="account:read", rate="read")
async def my_sessions(call: Call) -> SessionList:
    """List one's sessions, the one last seen first."""
    identity, mine = call.services.identity, call.principal.id
    now_valid = await identity.database.read(
        lambda connection: identity.directory.credentials_of(connection, mine).epoch
    )
    return SessionList(
        sessions=[
            SessionInfo(
                id=session.id,
                current=session.id == call.principal.credential,
                factors=list(session.factors),
                pending=session.pending,
                created_at=session.created_at,
                last_seen_at=session.last_seen_at,
                expires_at=session.expires_at,
                address=session.address,
                user_agent=session.user_agent,
            )
            for session in await identity.sessions.list(mine)
            if session.epoch == now_valid
        ]
    )


@operation("DELETE", "/me/sessions/{session}", permission="account:write", rate="write")
async def end_my_session(call: Call, session: SessionId) -> None:
    """End one of one's sessions; its pages and connections stop at once."""
    identity, principal = call.services.identity, call.principal
    if not await identity.sessions.end(principal.id, session):
        raise NotFound("You have no such session. List them to see which there are.")
    if session == principal.credential:
        call.reply.clear_session()


def profile(call: Call, user: UserInfo) -> Profile:
    """Describe oneself, with the permissions of this very request."""
    return Profile(
        id=user.id,
        username=user.username,
        display_name=user.display_name,
        email=user.email,
        roles=user.roles,
        groups=user.groups,
        permissions=sorted(call.principal.permissions),
        has_password=user.has_password,
    )
