"""Operations on tokens and API keys: get, renew and end them; log a device in."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from uait_server_ext.api.operation import PUBLIC, Call, operation
from uait_server_ext.identity.models import Body
from uait_server_ext.identity.token_models import (
    ApiKeyInfo,
    ApiKeyRequest,
    DeviceAnswer,
    DeviceRequest,
    LoggedInClient,
    NewApiKey,
    TokenAnswer,
)
from uait_server_ext.schema import Schema

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
DEVICE_PAGE = "uait/device"

Secret = Annotated[SecretStr, Field(min_length=1, max_length=200)]
UserCode = Annotated[str, Field(min_length=1, max_length=64)]
Identifier = Annotated[str, Field(max_length=40)]


class TokenRequest(Body):
    """What is exchanged for an access token (RFC 6749 section 6, RFC 8628 section 3.4)."""

    grant_type: Literal["refresh_token", "urn:ietf:params:oauth:grant-type:device_code"]
    refresh_token: Secret | None = None
    device_code: Secret | None = None

    @model_validator(mode="after")
    def one_secret(self) -> Self:
        """Ask for the secret that the grant type names, and no other."""
        device = self.grant_type == DEVICE_GRANT
        if (self.device_code is None) == device or (self.refresh_token is None) != device:
            raise ValueError("Send the refresh_token or the device_code that the grant_type names.")
        return self


class TokenRevocation(Body):
    """A refresh token that is to end (RFC 7009)."""

    token: Secret


class DeviceLogin(Body):
    """Who wants to be logged in, and for what."""

    client: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
    scope: str | None = Field(
        None, max_length=2000, description="Permissions, separated by spaces. None: the usual ones."
    )


class DeviceCode(Body):
    """The code that a client shows to its person."""

    user_code: UserCode


class DeviceDecision(Body):
    """What a person says to the login under a code."""

    user_code: UserCode
    decision: Literal["approve", "deny"]


class ClientList(Schema):
    """The clients that a person has logged in."""

    devices: list[LoggedInClient]


class KeyList(Schema):
    """The API keys of a person."""

    keys: list[ApiKeyInfo]


class JwkSet(Schema):
    """The public keys of access tokens (RFC 7517)."""

    keys: list[dict[str, Any]]


@operation("POST", "/token", permission=PUBLIC, rate="write")
async def token(call: Call, body: TokenRequest) -> TokenAnswer:
    """Get an access token for a refresh token or for a device code that was approved.

    A refresh token can be used once: keep the one of the answer. Using one twice ends the login.
    Until a device code is decided the answer is 400 with `error` as in RFC 8628 section 3.5.
    """
    identity, address = call.services.identity, call.request.address
    if body.device_code is not None:
        return await identity.devices.poll(body.device_code.get_secret_value(), address)
    assert body.refresh_token
    return await identity.refresh.rotate(body.refresh_token.get_secret_value(), address)


@operation("POST", "/token/revoke", permission=PUBLIC, rate="write")
async def revoke_token(call: Call, body: TokenRevocation) -> None:
    """End the login of a refresh token, with its access tokens; an unknown one is no error."""
    await call.services.identity.refresh.end(body.token.get_secret_value(), call.request.address)


@operation("POST", "/device", permission=PUBLIC, rate="login")
async def begin_device_login(call: Call, body: DeviceLogin) -> DeviceAnswer:
    """Begin a login that a person finishes in their browser (RFC 8628)."""
    request = call.request
    begun = await call.services.identity.devices.begin(body.client, body.scope, request.address)
    page = f"{request.origin}{request.base_url}{DEVICE_PAGE}"
    code = begun.shown
    return DeviceAnswer(
        device_code=begun.device_code,
        user_code=code,
        verification_uri=page,
        # Behind the #, so that the code is in no server's log.
        verification_uri_complete=f"{page}#user_code={code}",
    )


@operation("GET", "/jwks.json", permission=PUBLIC, rate="read")
async def jwks(call: Call) -> JwkSet:
    """Return the public keys with which access tokens are verified."""
    return JwkSet.model_validate(await call.services.identity.tokens.jwks())


@operation("GET", "/me/devices", permission="account:read", rate="read")
async def list_devices(call: Call) -> ClientList:
    """List the clients that you have logged in, the one used last first."""
    principal = call.principal
    return ClientList(
        devices=await call.services.identity.refresh.list(principal.id, principal.credential)
    )


@operation("POST", "/me/devices/lookup", permission="account:read", rate="login")
async def look_at_device(call: Call, body: DeviceCode) -> DeviceRequest:
    """Tell who asks to be logged in under a code, before you decide."""
    return await call.services.identity.devices.look(call.principal, body.user_code)


@operation("POST", "/me/devices", permission="account:write", rate="login", sensitive=True)
async def decide_device(call: Call, body: DeviceDecision) -> None:
    """Approve or deny the login under a code; in person, not by a token or key."""
    await call.services.identity.devices.decide(
        call.principal, body.user_code, body.decision, call.request.address
    )


@operation("DELETE", "/me/devices/{device}", permission="account:write", rate="write")
async def end_device(call: Call, device: Identifier) -> None:
    """Log a client out; its tokens end at once."""
    await call.services.identity.refresh.end_family(call.principal.id, device, call.request.address)


@operation("GET", "/me/keys", permission="account:read", rate="read")
async def list_keys(call: Call) -> KeyList:
    """List your API keys, without their secrets."""
    return KeyList(keys=await call.services.identity.api_keys.list(call.principal.id))


@operation(
    "POST", "/me/keys", permission="account:write", rate="write", sensitive=True, secret=True
)
async def create_key(call: Call, body: ApiKeyRequest) -> NewApiKey:
    """Make an API key. The answer is the only place where its secret is shown.

    It can hold permissions that you hold, be limited to operations and networks, and expires.
    """
    return await call.services.identity.api_keys.create(call.principal, body, call.request.address)


@operation("DELETE", "/me/keys/{key}", permission="account:write", rate="write")
async def revoke_key(call: Call, key: Identifier) -> None:
    """Revoke an API key; it is refused from the next request on."""
    await call.services.identity.api_keys.revoke(call.principal, key, call.request.address)
