"""Operations on secrets: list, create, change, reveal, lease."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.schema import Schema
from uait_server_ext.vault.models import (
    Lease,
    LeaseList,
    LeaseRequest,
    NewSecret,
    Revealed,
    SecretContent,
    SecretDetail,
    SecretInfo,
    SecretList,
)

SecretKey = Annotated[
    str, Field(min_length=1, max_length=100, description="A secret's id or name.")
]
LeaseKey = Annotated[str, Field(min_length=1, max_length=40)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


class RevealRequest(Schema):
    """Which version's value is wanted."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = Field(None, description="None: the current one.")


@operation("GET", "/vault/secrets", permission="vault:read", rate="read", tool=True)
async def list_secrets(call: Call) -> SecretList:
    """List your secrets and the shared ones, without their values."""
    vault = await call.services.vault()
    return SecretList(secrets=await vault.secrets(call.principal))


@operation("POST", "/vault/secrets", permission="vault:write", rate="write")
async def create_secret(call: Call, body: NewSecret) -> SecretInfo:
    """Create a secret; its value cannot be listed, only revealed or leased."""
    vault = await call.services.vault()
    return await vault.create(call.principal, body, address=call.request.address)


@operation("GET", "/vault/secrets/{secret}", permission="vault:read", rate="read", tool=True)
async def get_secret(call: Call, secret: SecretKey) -> SecretDetail:
    """Describe a secret and its versions, without their values."""
    vault = await call.services.vault()
    return await vault.secret(call.principal, secret, address=call.request.address)


@operation("PUT", "/vault/secrets/{secret}", permission="vault:write", rate="write")
async def set_secret(call: Call, secret: SecretKey, body: SecretContent) -> SecretInfo:
    """Give a secret a new value as a new version; leases use it from now on."""
    vault = await call.services.vault()
    return await vault.set(call.principal, secret, body, address=call.request.address)


@operation("DELETE", "/vault/secrets/{secret}", permission="vault:write", rate="write")
async def delete_secret(call: Call, secret: SecretKey) -> None:
    """Delete a secret with its versions and leases, for good."""
    vault = await call.services.vault()
    await vault.delete(call.principal, secret, address=call.request.address)


@operation(
    "POST",
    "/vault/secrets/{secret}/reveal",
    permission="vault:reveal",
    rate="write",
    sensitive=True,
    secret=True,
)
async def reveal_secret(call: Call, secret: SecretKey, body: RevealRequest) -> Revealed:
    """Return the value of a secret; the audit log records it before."""
    vault = await call.services.vault()
    call.reply.headers["Cache-Control"] = "no-store"
    return await vault.reveal(
        call.principal, secret, version=body.version, address=call.request.address
    )


@operation(
    "DELETE", "/vault/secrets/{secret}/versions/{version}", permission="vault:write", rate="write"
)
async def destroy_version(call: Call, secret: SecretKey, version: Version) -> None:
    """Destroy the value of an old version, for good."""
    vault = await call.services.vault()
    await vault.destroy(call.principal, secret, version, address=call.request.address)


@operation("GET", "/vault/leases", permission="vault:use", rate="read")
async def list_leases(call: Call) -> LeaseList:
    """List your leases, newest first."""
    vault = await call.services.vault()
    return LeaseList(leases=await vault.leases(call.principal))


@operation("POST", "/vault/leases", permission="vault:use", rate="write")
async def create_lease(call: Call, body: LeaseRequest) -> Lease:
    """Let an agent or run use a secret for a while, without you or it seeing the value."""
    vault = await call.services.vault()
    return await vault.lease(call.principal, body, address=call.request.address)


@operation("DELETE", "/vault/leases/{lease}", permission="vault:use", rate="write")
async def revoke_lease(call: Call, lease: LeaseKey) -> None:
    """End a lease of yours."""
    vault = await call.services.vault()
    await vault.revoke(call.principal, lease, address=call.request.address)
