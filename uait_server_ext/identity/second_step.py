"""The second step of a login, and passkeys, which are a whole login in one step.

A pending session becomes a full one with a new secret. A passkey given by somebody who is logged in
is their fresh proof of who they are. A change of factors ends everything that the person holds; the
browser in which they made it gets a new session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from uait_server_ext.errors import Conflict, PermissionDenied, Unauthenticated
from uait_server_ext.storage.ids import new_secret

from .ceremonies import Credential
from .login import BINDING, BINDING_PREFIX, Client, LoggedIn, active, leave
from .models import LoginState
from .principal import Principal

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .directory import Standing
    from .service import Identity
    from .sessions import Session

LOGGED_IN = LoginState(state="logged-in")


async def give_code(
    identity: Identity, method: Literal["totp", "recovery"], code: str, client: Client
) -> LoggedIn:
    """Complete a login by a code of an authenticator app, or by a recovery code.

    Raises:
        Unauthenticated: the code is wrong or was used; or no login waits in this browser.
        Conflict: the login is complete already.
        TooManyAttempts: too many wrong codes before; nothing was checked.
    """
    session = await waiting(identity, client)
    if not session.pending:
        raise Conflict("You are logged in already. Nothing was checked.")
    check = identity.factors.check_code if method == "totp" else identity.factors.check_recovery
    await check(session.user_id, code, client.address)
    return await complete(identity, session, method, client)


async def passkey_options(
    identity: Identity, origin: str, client: Client
) -> tuple[dict[str, Any], str]:
    """Begin a login by passkey; return the browser's options and its binding cookie.

    In a browser with a session, pending or not, only passkeys of that session's person are taken.

    Raises:
        DependencyMissing: the extra is not installed.
        InvalidInput: browsers keep no passkeys for this address.
    """
    session = await identity.sessions.find(client.session_secret or "")
    binding = binding_of(client)
    options = await identity.passkeys.options_to_log_in(
        origin, binding, session.user_id if session else None
    )
    return options, binding


async def log_in_with_passkey(
    identity: Identity, credential: Credential, origin: str, client: Client
) -> LoggedIn:
    """Take a passkey: as a login, as the second step of one, or as a fresh proof.

    Raises:
        FlowInvalid: the challenge is unknown, was used, or is another browser's.
        Unauthenticated: the passkey was not accepted, or the account is not active.
    """
    user_id = await identity.passkeys.log_in(credential, origin, client.binding, client.address)
    standing = await active(identity, user_id)
    session = await identity.sessions.find(client.session_secret or "")
    if session and session.user_id == user_id and session.epoch == standing.epoch:
        return await complete(identity, session, "passkey", client)
    if client.session_secret:
        await leave(identity, client.session_secret)
    secret, _ = await identity.sessions.start(
        user_id, standing.epoch, ("passkey",), False, client.address, client.user_agent
    )
    return LoggedIn(LOGGED_IN, secret, await remember(identity, user_id, client))


async def complete(identity: Identity, session: Session, factor: str, client: Client) -> LoggedIn:
    """Give a session more rank after a factor was checked."""
    secret, _ = await identity.sessions.upgrade(client.session_secret or "", (factor,))
    return LoggedIn(LOGGED_IN, secret, await remember(identity, session.user_id, client))


async def waiting(identity: Identity, client: Client) -> Session:
    """Return the session of a browser whose person may still log in.

    Raises:
        Unauthenticated: there is none, or the account has changed or is not active.
    """
    session = await identity.sessions.find(client.session_secret or "")
    if session is None:
        raise Unauthenticated("No login waits for a second factor here. Log in again.")
    standing = await active(identity, session.user_id)
    if session.epoch != standing.epoch:
        raise Unauthenticated("Your account has changed meanwhile. Log in again.")
    return session


async def remember(identity: Identity, user_id: str, client: Client) -> str:
    """Note that a person has logged in from this browser; return its binding cookie."""
    binding = binding_of(client)

    def work(connection: Connection) -> None:
        identity.throttle.remember_browser(connection, user_id, binding)

    await identity.database.write(work)
    return binding


def binding_of(client: Client) -> str:
    """Return the browser's binding cookie; a new one where it has none that can be ours."""
    binding = client.binding or ""
    return binding if BINDING.fullmatch(binding) else new_secret(BINDING_PREFIX)


async def person(identity: Identity, principal: Principal) -> Standing:
    """Return the standing of a person who manages their own factors.

    Raises:
        PermissionDenied: the caller is a key, a kernel or another program.
        Unauthenticated: the account is not active.
    """
    if principal.kind != "user":
        raise PermissionDenied("Only a person can change their second factors.")
    return await active(identity, principal.id)


async def after_change(
    identity: Identity, user_id: str, client: Client, factor: str | None = None
) -> str | None:
    """End the sessions of a person whose factors changed, but for the browser that changed them.

    Returns:
        The secret of the session that replaces the browser's; none where there was no session.
    """
    session = await identity.sessions.find(client.session_secret or "")
    await identity.sessions.end_all(user_id)
    if session is None or session.pending or session.user_id != user_id:
        return None
    standing = await active(identity, user_id)
    factors = dict.fromkeys((*session.factors, *([factor] if factor else [])))
    secret, _ = await identity.sessions.start(
        user_id, standing.epoch, tuple(factors), False, client.address, client.user_agent
    )
    return secret
