"""Operations that let people in: the password step, first set-up, invitations, resets, logout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uait_server_ext.api.operation import PUBLIC, Call, operation
from uait_server_ext.identity.models import (
    AcceptInvitation,
    LoginMethods,
    LoginState,
    PasswordLogin,
    Provider,
    ResetPassword,
    SetUp,
)

if TYPE_CHECKING:
    from uait_server_ext.identity.login import Client, LoggedIn


@operation("GET", "/login/methods", permission=PUBLIC, rate="read")
async def login_methods(call: Call) -> LoginMethods:
    """Tell what the login page offers."""
    identity = call.services.identity
    return LoginMethods(
        password=True,
        setup_needed=await identity.database.read(identity.directory.empty),
        passkeys=identity.passkeys.available(call.request.origin),
        providers=[Provider(id=key, name=name) for key, name in identity.oidc.offered()],
    )


@operation("POST", "/login", permission=PUBLIC, rate="login")
async def login(call: Call, body: PasswordLogin) -> LoginState:
    """Log in with user name and password; where a second factor is set up, it must follow.

    After some failures an account takes no login for a while (429 with `Retry-After`), except from
    browsers in which its owner has logged in before.
    """
    from uait_server_ext.identity.login import log_in

    return enter(
        call,
        await log_in(
            call.services.identity, body.username, body.password.get_secret_value(), client(call)
        ),
    )


@operation("POST", "/setup", permission=PUBLIC, rate="login")
async def set_up(call: Call, body: SetUp) -> LoginState:
    """Make the first account, an administrator's, with the link that the server printed."""
    from uait_server_ext.identity import enrolment

    return enter(
        call,
        await enrolment.set_up(
            call.services.identity,
            body.secret.get_secret_value(),
            body.username,
            body.display_name,
            body.password.get_secret_value(),
            client(call),
        ),
    )


@operation("POST", "/invitation", permission=PUBLIC, rate="login")
async def accept_invitation(call: Call, body: AcceptInvitation) -> LoginState:
    """Make an account with an invitation's link."""
    from uait_server_ext.identity import enrolment

    return enter(
        call,
        await enrolment.accept(
            call.services.identity,
            body.secret.get_secret_value(),
            body.username,
            body.display_name,
            body.password.get_secret_value(),
            client(call),
        ),
    )


@operation("POST", "/password-reset", permission=PUBLIC, rate="login")
async def reset_password(call: Call, body: ResetPassword) -> LoginState:
    """Set a new password with a one-time link; a second factor is still asked for."""
    from uait_server_ext.identity import enrolment

    return enter(
        call,
        await enrolment.reset(
            call.services.identity,
            body.secret.get_secret_value(),
            body.password.get_secret_value(),
            client(call),
        ),
    )


@operation("POST", "/logout", permission="account:read", rate="write")
async def logout(call: Call) -> None:
    """End this session, or the login to which this access token belongs."""
    from uait_server_ext.identity.login import log_out

    await log_out(call.services.identity, call.principal, client(call))
    call.reply.clear_session()


def client(call: Call) -> Client:
    """Return who asks to be let in."""
    from uait_server_ext.identity.login import Client

    request = call.request
    return Client(request.address, request.user_agent, request.session_secret, request.binding)


def enter(call: Call, logged_in: LoggedIn) -> LoginState:
    """Give the browser its session and the cookie by which it is known again."""
    call.reply.set_session(logged_in.secret)
    call.reply.set_binding(logged_in.binding)
    return logged_in.state
