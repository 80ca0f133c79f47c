"""Operations on second factors: the second step of a login, passkeys, and managing one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SecretStr

from uait_server_ext.api.operation import PUBLIC, Call, operation
from uait_server_ext.identity.factor_models import FactorOverview
from uait_server_ext.identity.models import Body, LoginState
from uait_server_ext.schema import Schema

from .login import client, enter

if TYPE_CHECKING:
    from uait_server_ext.identity.directory import Standing

FactorName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
Code = Annotated[SecretStr, Field(min_length=1, max_length=64)]


class CodeBody(Body):
    """A code of an authenticator app, or a recovery code."""

    code: Code


class PasskeyBody(Body):
    """What `navigator.credentials.get` gave, as JSON (WebAuthn section 5.1.8)."""

    credential: dict[str, Any]


class NewPasskeyBody(PasskeyBody):
    """What `navigator.credentials.create` gave, and how to call it."""

    name: FactorName


class NewTotpBody(Body):
    """How to call an authenticator app."""

    name: FactorName = "Authenticator app"


class TotpSetup(Schema):
    """What an authenticator app needs; shown this once. Confirm it with a first code."""

    id: str
    secret: str
    uri: str = Field(description="`otpauth://…`, also for a link on the phone itself.")
    qr_svg: str


class CodesAnswer(Schema):
    """New recovery codes, shown this once; none where the old ones still serve."""

    recovery_codes: list[str]


class PasskeyAnswer(CodesAnswer):
    """A passkey that was added."""

    id: str
    name: str


@operation("POST", "/login/totp", permission=PUBLIC, rate="login")
async def log_in_with_totp(call: Call, body: CodeBody) -> LoginState:
    """Complete a login by a code of the authenticator app. Each code serves once."""
    from uait_server_ext.identity.second_step import give_code

    code = body.code.get_secret_value()
    return enter(call, await give_code(call.services.identity, "totp", code, client(call)))


@operation("POST", "/login/recovery", permission=PUBLIC, rate="login")
async def log_in_with_recovery_code(call: Call, body: CodeBody) -> LoginState:
    """Complete a login by a recovery code. Each code serves once."""
    from uait_server_ext.identity.second_step import give_code

    code = body.code.get_secret_value()
    return enter(call, await give_code(call.services.identity, "recovery", code, client(call)))


@operation("POST", "/login/passkey/options", permission=PUBLIC, rate="login")
async def begin_passkey_login(call: Call) -> dict[str, Any]:
    """Begin a login by passkey: the options for `navigator.credentials.get`."""
    from uait_server_ext.identity.second_step import passkey_options

    options, binding = await passkey_options(
        call.services.identity, call.request.origin, client(call)
    )
    call.reply.set_binding(binding)
    return options


@operation("POST", "/login/passkey", permission=PUBLIC, rate="login")
async def finish_passkey_login(call: Call, body: PasskeyBody) -> LoginState:
    """Log in by passkey. In a browser that is logged in, it is a fresh proof of who is there."""
    from uait_server_ext.identity.second_step import log_in_with_passkey

    return enter(
        call,
        await log_in_with_passkey(
            call.services.identity, body.credential, call.request.origin, client(call)
        ),
    )


@operation("GET", "/me/factors", permission="account:read", rate="read")
async def list_factors(call: Call) -> FactorOverview:
    """List your second factors."""
    return await call.services.identity.factors.overview(await standing_of(call))


@operation(
    "POST",
    "/me/factors/totp",
    permission="account:write",
    rate="write",
    sensitive=True,
    secret=True,
)
async def begin_totp(call: Call, body: NewTotpBody) -> TotpSetup:
    """Begin with an authenticator app: the secret and its QR code. Confirm it with a code."""
    identity = call.services.identity
    standing = await standing_of(call)
    begun = await identity.factors.begin_totp(standing.user_id, standing.username, body.name)
    from uait_server_ext.identity.totp import qr_svg

    return TotpSetup(id=begun.id, secret=begun.secret, uri=begun.uri, qr_svg=qr_svg(begun.uri))


@operation(
    "POST",
    "/me/factors/totp/{factor}/confirm",
    permission="account:write",
    rate="write",
    sensitive=True,
    secret=True,
)
async def confirm_totp(call: Call, factor: str, body: CodeBody) -> CodesAnswer:
    """Make an authenticator app count, by a first code. Your other logins end."""
    identity = call.services.identity
    standing = await standing_of(call)
    codes = await identity.factors.confirm_totp(
        standing.user_id, factor, body.code.get_secret_value(), call.request.address
    )
    await renew_session(call, "totp")
    return CodesAnswer(recovery_codes=codes)


@operation(
    "POST",
    "/me/factors/recovery-codes",
    permission="account:write",
    rate="write",
    sensitive=True,
    secret=True,
)
async def renew_recovery_codes(call: Call) -> CodesAnswer:
    """Make ten new recovery codes; the old ones are void. Your other logins end."""
    identity = call.services.identity
    standing = await standing_of(call)
    codes = await identity.factors.renew_recovery_codes(standing.user_id, call.request.address)
    await renew_session(call)
    return CodesAnswer(recovery_codes=codes)


@operation(
    "POST", "/me/factors/passkeys/options", permission="account:write", rate="write", sensitive=True
)
async def begin_passkey(call: Call) -> dict[str, Any]:
    """Begin to add a passkey: the options for `navigator.credentials.create`."""
    from uait_server_ext.identity.second_step import binding_of

    identity = call.services.identity
    standing = await standing_of(call)
    binding = binding_of(client(call))
    call.reply.set_binding(binding)
    return await identity.passkeys.options_to_add(
        standing.user_id,
        standing.username,
        standing.display_name,
        call.request.origin,
        binding,
    )


@operation(
    "POST",
    "/me/factors/passkeys",
    permission="account:write",
    rate="write",
    sensitive=True,
    secret=True,
)
async def add_passkey(call: Call, body: NewPasskeyBody) -> PasskeyAnswer:
    """Add a passkey. Your other logins end."""
    identity = call.services.identity
    standing = await standing_of(call)
    request = call.request
    added = await identity.passkeys.add(
        standing.user_id,
        body.name,
        body.credential,
        request.origin,
        request.binding,
        request.address,
    )
    codes = await identity.factors.first_recovery_codes(standing.user_id)
    await renew_session(call, "passkey")
    return PasskeyAnswer(id=added.id, name=added.name, recovery_codes=codes)


@operation(
    "DELETE", "/me/factors/{factor}", permission="account:write", rate="write", sensitive=True
)
async def remove_factor(call: Call, factor: str) -> None:
    """Remove an authenticator app or a passkey. Your other logins end."""
    identity = call.services.identity
    standing = await standing_of(call)
    await identity.factors.remove(standing, factor, call.request.address)
    await renew_session(call)


async def standing_of(call: Call) -> Standing:
    """Return the standing of the person who calls.

    Raises:
        PermissionDenied: the caller is a key, a kernel or another program.
    """
    from uait_server_ext.identity.second_step import person

    return await person(call.services.identity, call.principal)


async def renew_session(call: Call, factor: str | None = None) -> None:
    """End the caller's other logins, and give this browser a new session."""
    from uait_server_ext.identity.second_step import after_change

    secret = await after_change(call.services.identity, call.principal.id, client(call), factor)
    if secret:
        call.reply.set_session(secret)
