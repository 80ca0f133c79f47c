"""Logging in with a password, proving it once more, changing it: the steps and their order.

An attempt is counted before the password is hashed, hashed whether or not the person exists, and
audited either way. A session begins with the password; where the person has a second factor it is
pending until that is given. Every step gives the browser a new secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from sqlalchemy import Connection

from uait_server_ext.errors import (
    Busy,
    Conflict,
    InvalidInput,
    PermissionDenied,
    TooManyAttempts,
    Unauthenticated,
    Unavailable,
)
from uait_server_ext.events.audit import AuditEvent
from uait_server_ext.storage.ids import new_secret

from . import names
from .models import LoginState, Method
from .passwords import check_new_password
from .principal import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .directory import Credentials, Standing
    from .service import Identity
    from .throttle import Attempt

BINDING_PREFIX = "bind"
BINDING = re.compile(r"bind_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Client:
    """The browser or program that logs in.

    Attributes:
        session_secret: of the session that it has now, which the new one replaces.
        binding: the cookie by which this browser is known again.
    """

    address: str
    user_agent: str = ""
    session_secret: str | None = field(default=None, repr=False)
    binding: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """What the browser gets: its session, and the cookie by which it is known again."""

    state: LoginState
    secret: str = field(repr=False)
    binding: str = field(repr=False)


async def log_in(identity: Identity, username: str, password: str, client: Client) -> LoggedIn:
    """Take a password and begin a session.

    Raises:
        Unauthenticated: name or password is wrong, or the account is not active: not told which.
        TooManyAttempts: too many failures before; nothing was checked.
        Busy: too many passwords wait to be checked.
        TooLarge: the password is longer than any that was ever accepted.
        Unavailable: the store of sessions does not answer.
    """
    try:
        attempt = await identity.throttle.login(username, client.address, client.binding)
    except TooManyAttempts:
        await note(identity, "login.password", "refused", names.claimed(username), client, "limit")
        raise
    found = await identity.database.read(lambda c: identity.directory.credentials(c, username))
    stored = found.password_hash if found and not found.disabled else None
    if not await checked(identity, attempt, stored, password):
        who = found.user_id if found else names.claimed(username)
        await note(identity, "login.password", "refused", who, client)
        raise Unauthenticated("The user name or the password is wrong. Try again.")
    assert found
    await identity.throttle.succeeded(attempt)
    await renew_hash(identity, found, password)
    return await admit(identity, found.user_id, ("password",), client)


async def admit(
    identity: Identity,
    user_id: str,
    factors: Sequence[str],
    client: Client,
    *,
    provider: str | None = None,
) -> LoggedIn:
    """Begin the session of a person who gave a first factor, and note the login.

    `provider` is the identity provider that vouches for them, where one does.

    Raises:
        Unauthenticated: the account is not active.
        Unavailable: the store of sessions does not answer.
    """
    standing = await active(identity, user_id)
    methods = await identity.factors.methods(user_id)
    if client.session_secret:
        await leave(identity, client.session_secret)
    secret, _ = await identity.sessions.start(
        user_id,
        standing.epoch,
        factors,
        pending=bool(methods),
        address=client.address,
        user_agent=client.user_agent,
    )
    binding = client.binding or ""
    if not BINDING.fullmatch(binding):  # ours, and not one that a stranger can guess
        binding = new_secret(BINDING_PREFIX)

    def work(connection: Connection) -> None:
        identity.throttle.remember_browser(connection, user_id, binding)
        identity.audit.append(
            connection,
            AuditEvent(
                action=f"login.{factors[0]}",
                outcome="ok",
                principal=user_id,
                kind="user",
                address=client.address,
                target=provider,
                detail={"second_factor": bool(methods)},
            ),
        )

    await identity.database.write(work)
    state = LoginState(
        state="second-factor" if methods else "logged-in",
        methods=cast("list[Method]", list(methods)),
        must_enrol=not methods and identity.factors.required(standing),
    )
    return LoggedIn(state, secret, binding)


async def leave(identity: Identity, secret: str) -> None:
    """End the session of a secret, if it is one."""
    if session := await identity.sessions.find(secret):
        await identity.sessions.end(session.user_id, session.id)


async def log_out(identity: Identity, principal: Principal, client: Client) -> None:
    """End the session of a browser, or the login of a program by its access token."""
    if principal.kind == "user" and principal.credential:
        ended = await identity.sessions.end(principal.id, principal.credential)
        if not ended:
            for one in await identity.refresh.list(principal.id, principal.credential):
                if one.current:
                    await identity.refresh.end_family(principal.id, one.id, client.address)
        identity.kernels.end_tokens(principal.id)
    await note(identity, "logout", "ok", principal.id, client)


async def reauthenticate(
    identity: Identity,
    principal: Principal,
    client: Client,
    *,
    password: str | None = None,
    code: str | None = None,
) -> str:
    """Take a fresh proof of who is there; return the secret of the session that replaces theirs.

    Who has an authenticator app proves it by a code, as the password alone did not let them in
    either; everyone else by their password.

    Raises:
        Unauthenticated: the proof is wrong.
        InvalidInput: it is not the kind of proof that this person must give.
        TooManyAttempts, Busy: as for `log_in`.
    """
    if principal.kind != "user" or client.session_secret is None:
        raise PermissionDenied("Only a person in a browser session can prove who they are.")
    methods = await identity.factors.methods(principal.id)
    if code is not None and "totp" in methods:
        await identity.factors.check_code(principal.id, code, client.address)
        factor = "totp"
    elif password is not None and not methods:
        await prove_password(identity, principal, password, client, "login.reauthenticate")
        factor = "password"
    elif "totp" in methods:
        raise InvalidInput("Send `code`, the newest one of your authenticator app.")
    elif methods:
        raise InvalidInput("Log in with your passkey once more: that is your proof.")
    else:
        raise InvalidInput("Send `password`.")
    secret, _ = await identity.sessions.upgrade(client.session_secret, (factor,))
    return secret


async def change_password(
    identity: Identity, principal: Principal, current: str, new: str, client: Client
) -> str | None:
    """Change one's password, which ends every other session and token of the person.

    Returns:
        The secret of the session that replaces the browser's, none where there was no session.

    Raises:
        PermissionDenied: the current password is wrong, or the caller is no person.
        WeakPassword: the new one is too easy to guess.
    """
    if principal.kind != "user":
        raise PermissionDenied("Only a person can change their password.")
    try:
        mine = await prove_password(identity, principal, current, client, "password.change")
    except Unauthenticated:
        raise PermissionDenied("The current password is wrong. Nothing was changed.") from None
    check_new_password(new, mine.username, mine.display_name)
    hashed = await identity.passwords.hash(new)

    def work(connection: Connection) -> int:
        if identity.directory.credentials_of(connection, mine.user_id) != mine:
            raise Conflict("Your account has changed in the meantime. Try again.")
        identity.links.void(connection, mine.user_id)
        identity.audit.append(
            connection,
            AuditEvent(
                action="password.change",
                outcome="ok",
                principal=mine.user_id,
                kind="user",
                address=client.address,
            ),
        )
        return identity.directory.set_password(connection, mine.user_id, hashed)

    epoch = await identity.database.write(work)
    session = await identity.sessions.find(client.session_secret or "")
    await identity.sessions.end_all(mine.user_id)
    if session is None or session.user_id != mine.user_id:
        return None
    secret, _ = await identity.sessions.start(
        mine.user_id, epoch, session.factors, False, client.address, client.user_agent
    )
    return secret


async def prove_password(
    identity: Identity, principal: Principal, password: str, client: Client, action: str
) -> Credentials:
    """Check the password of a person who is logged in, within the limit of attempts.

    Raises:
        Unauthenticated: it is wrong, or the person has none.
        TooManyAttempts: too many were wrong.
    """
    attempt = await identity.throttle.proof(principal.id)
    mine = await identity.database.read(
        lambda c: identity.directory.credentials_of(c, principal.id)
    )
    if not await checked(identity, attempt, mine.password_hash, password):
        await note(identity, action, "refused", principal.id, client)
        raise Unauthenticated("The password is wrong. Try again.")
    await identity.throttle.succeeded(attempt)
    return mine


async def checked(identity: Identity, attempt: Attempt, stored: str | None, password: str) -> bool:
    """Verify a password; an attempt that could not be decided does not count."""
    try:
        return await identity.passwords.verify(stored, password)
    except (Busy, Unavailable):
        await identity.throttle.withdraw(attempt)
        raise


async def renew_hash(identity: Identity, found: Credentials, password: str) -> None:
    """Hash a right password anew where it was hashed at other costs than today's."""
    old = found.password_hash
    if old and identity.passwords.outdated(old):
        new = await identity.passwords.hash(password)
        await identity.database.write(
            lambda c: identity.directory.refresh_hash(c, found.user_id, old, new)
        )


async def active(identity: Identity, user_id: str) -> Standing:
    """Return the standing of a person who may log in.

    Raises:
        Unauthenticated: there is no such person, or they are disabled.
    """
    standing = await identity.database.read(lambda c: identity.directory.standing(c, user_id))
    if standing is None or standing.disabled:
        raise Unauthenticated("This account is not active. Ask an administrator.")
    return standing


async def note(
    identity: Identity,
    action: str,
    outcome: str,
    who: str,
    client: Client,
    reason: str | None = None,
) -> None:
    """Append an event of a login to the audit log."""
    await identity.audit.record(
        AuditEvent.model_validate(
            {
                "action": action,
                "outcome": outcome,
                "principal": who,
                "kind": "user",
                "address": client.address,
                "detail": {"reason": reason} if reason else {},
            }
        )
    )
