"""The vault: who may do what with which secret, and the record of it.

Every access is in the audit log, committed, before a value is released: where the log cannot be
written nothing is. Server code uses a secret through a lease, whose holder never sees the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, TypeVar

from pydantic import SecretStr
from sqlalchemy import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from uait_server_ext.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    SealBroken,
    UaitError,
    Unavailable,
)
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, new_id, now
from uait_server_ext.storage.sealing import Sealer

from . import leasing, store
from .environment import scrub
from .models import (
    ID_PREFIX,
    SHARED,
    Lease,
    LeaseRequest,
    NewSecret,
    Revealed,
    SecretContent,
    SecretDetail,
    SecretInfo,
    VersionInfo,
)
from .sources import SecretSource

Result = TypeVar("Result")
Detail = bool | int | str


class Holder(Protocol):
    """Who acts; a `Principal` of the identity domain."""

    @property
    def id(self) -> str:
        """The user's id: the owner of what is created."""

    @property
    def kind(self) -> Any:
        """What acts in the user's name."""

    def may(self, permission: str) -> bool:
        """Tell whether the permission is held."""


class Vault:
    """Create, list, change, reveal and lease secrets.

    Args:
        sources: other vaults by the word that begins a reference to them.
        active: whether the user behind a lease may still act; asked at each use.
    """

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        audit: AuditLog,
        *,
        clock: Clock = now,
        sources: Mapping[str, SecretSource] | None = None,
        active: Callable[[Connection, str], bool] = lambda _connection, _user: True,
    ) -> None:
        self.database = database
        self.sealer = sealer
        self.audit = audit
        self.clock = clock
        self.sources = dict(sources or {})
        self.active = active

    async def secrets(self, holder: Holder) -> list[SecretInfo]:
        """List one's own and the shared secrets, without values."""
        await self._allow(holder, "vault:read", "vault.list", None, None)
        rows = await self.database.read(lambda c: store.all_visible(c, holder.id))
        return [info(row) for row in rows]

    async def secret(
        self, holder: Holder, secret: str, *, address: str | None = None
    ) -> SecretDetail:
        """Describe a secret and its versions."""
        await self._allow(holder, "vault:read", "vault.list", secret, address)

        def read(connection: Connection) -> SecretDetail:
            row = store.visible(connection, holder.id, secret)
            found = [
                VersionInfo.model_validate(version, from_attributes=True)
                for version in store.versions(connection, row.id)
            ]
            return SecretDetail(**info(row).model_dump(), versions=found)

        return await self.database.read(read)

    async def create(
        self, holder: Holder, new: NewSecret, *, address: str | None = None
    ) -> SecretInfo:
        """Seal a new secret.

        Raises:
            Conflict: its owner has one of that name.
        """
        await self._allow(holder, "vault:write", "vault.create", new.name, address)
        self._check_reference(new.reference)
        secret_id = new_id(ID_PREFIX)

        def work(connection: Connection) -> SecretInfo:
            row = {
                "id": secret_id,
                "owner": SHARED if new.shared else holder.id,
                "name": new.name,
                "description": new.description,
                "reference": new.reference,
            }
            store.add(connection, self.sealer, row, value=plain(new), by=holder.id, at=self.clock())
            self._note(
                connection, holder, "vault.create", secret_id, address, name=new.name,
                shared=new.shared,
            )  # fmt: skip
            return info(store.visible(connection, holder.id, secret_id))

        return await self._write(work, holder, "vault.create", new.name, address)

    async def set(
        self, holder: Holder, secret: str, content: SecretContent, *, address: str | None = None
    ) -> SecretInfo:
        """Give a secret a new value, as a new version."""
        await self._allow(holder, "vault:write", "vault.set", secret, address)
        self._check_reference(content.reference)

        def work(connection: Connection) -> SecretInfo:
            row = store.visible(connection, holder.id, secret)
            store.check(connection, self.sealer, row)
            version = store.add_version(
                connection,
                self.sealer,
                row.id,
                value=plain(content),
                reference=content.reference,
                by=holder.id,
                at=self.clock(),
            )
            self._note(
                connection, holder, "vault.set", row.id, address, name=row.name, version=version
            )
            return info(store.visible(connection, holder.id, row.id))

        return await self._write(work, holder, "vault.set", secret, address)

    async def delete(self, holder: Holder, secret: str, *, address: str | None = None) -> None:
        """Delete a secret with its versions and leases, for good."""
        await self._allow(holder, "vault:write", "vault.delete", secret, address)

        def work(connection: Connection) -> None:
            row = store.visible(connection, holder.id, secret)
            store.remove(connection, self.sealer, row.id)
            self._note(connection, holder, "vault.delete", row.id, address, name=row.name)

        await self._write(work, holder, "vault.delete", secret, address)

    async def destroy(
        self, holder: Holder, secret: str, version: int, *, address: str | None = None
    ) -> None:
        """Destroy the value of an old version, for good.

        Raises:
            Conflict: it is the current one.
        """
        await self._allow(holder, "vault:write", "vault.destroy", secret, address)

        def work(connection: Connection) -> None:
            row = store.visible(connection, holder.id, secret)
            if version == row.current:
                raise Conflict(
                    "This is the current version: set a new value first, or delete the secret."
                )
            if version not in {v.version for v in store.versions(connection, row.id)}:
                raise NotFound("The secret has no such version.")
            store.destroy(connection, self.sealer, row.id, version, self.clock())
            self._note(
                connection, holder, "vault.destroy", row.id, address, name=row.name, version=version
            )

        await self._write(work, holder, "vault.destroy", secret, address)

    async def reveal(
        self,
        holder: Holder,
        secret: str,
        *,
        version: int | None = None,
        address: str | None = None,
    ) -> Revealed:
        """Return a value to a person, after the record of it is committed.

        Raises:
            NotFound: the holder has no such secret or version.
            PermissionDenied: `vault:reveal` is not held.
            SealBroken: it was changed in the database.
            Unavailable: the audit log cannot be written.
        """
        await self._allow(holder, "vault:reveal", "vault.reveal", secret, address)

        def work(connection: Connection) -> Row[Any]:
            row = store.visible(connection, holder.id, secret)
            self._note(
                connection, holder, "vault.reveal", row.id, address, name=row.name,
                version=version or row.current,
            )  # fmt: skip
            return row

        row = await self._write(work, holder, "vault.reveal", secret, address)
        number = version or row.current
        value = await self._release(row, number)
        return Revealed(id=row.id, version=number, value=value.get_secret_value())

    async def lease(
        self, holder: Holder, request: LeaseRequest, *, address: str | None = None
    ) -> Lease:
        """Give the right to use a secret for a while."""
        await self._allow(holder, "vault:use", "vault.lease", request.secret, address)

        def work(connection: Connection) -> Lease:
            row = store.visible(connection, holder.id, request.secret)
            at = self.clock()
            lease = Lease(
                id=new_id("lease"),
                secret=row.id,
                purpose=request.purpose,
                created_at=at,
                expires_at=at + request.seconds,
                max_uses=request.max_uses,
            )
            leasing.add(connection, lease, holder.id)
            self._note(
                connection, holder, "vault.lease", row.id, address, name=row.name, lease=lease.id,
                purpose=request.purpose, seconds=request.seconds,
            )  # fmt: skip
            return lease

        return await self._write(work, holder, "vault.lease", request.secret, address)

    async def use(self, lease_id: str) -> SecretStr:
        """Return the value behind a lease to server code; counted and recorded first.

        Raises:
            PermissionDenied: the lease has ended, or its holder may act no more.
            SealBroken: the secret was changed in the database.
            Unavailable: the audit log cannot be written.
        """

        def work(connection: Connection) -> leasing.Granted | leasing.Refusal:
            found = leasing.count_use(connection, lease_id, self.clock())
            if not isinstance(found, str) and not self.active(connection, found.lease.principal):
                found = "secret-gone"
            if isinstance(found, str):
                event = AuditEvent(
                    action="vault.use", outcome="refused", target=lease_id, detail={"why": found}
                )
            else:
                event = AuditEvent(
                    action="vault.use",
                    outcome="ok",
                    principal=found.lease.principal,
                    target=found.secret.id,
                    detail={
                        "lease": lease_id,
                        "name": found.secret.name,
                        "purpose": found.lease.purpose,
                    },
                )
            self.audit.append(connection, event)
            return found

        found = await self._commit(work)
        if isinstance(found, str):
            raise PermissionDenied(f"{leasing.WHY[found]}: take a new one.")
        return await self._release(found.secret, found.secret.current)

    async def leases(self, holder: Holder) -> list[Lease]:
        """List one's own leases."""
        await self._allow(holder, "vault:use", "vault.lease", None, None)
        return await self.database.read(lambda c: leasing.of_principal(c, holder.id))

    async def revoke(self, holder: Holder, lease_id: str, *, address: str | None = None) -> None:
        """End a lease of one's own."""
        await self._allow(holder, "vault:use", "vault.revoke", lease_id, address)

        def work(connection: Connection) -> None:
            lease = leasing.revoke(connection, holder.id, lease_id, self.clock())
            self._note(connection, holder, "vault.revoke", lease.secret_id, address, lease=lease_id)

        await self._write(work, holder, "vault.revoke", lease_id, address)

    async def put(self, holder: Holder, new: NewSecret) -> str:
        """Create a secret or set its value; do nothing where it has that value already.

        Returns:
            `created`, `changed` or `unchanged`.
        """
        await self._allow(holder, "vault:write", "vault.set", new.name, None)
        owner = SHARED if new.shared else holder.id

        def compare(connection: Connection) -> str:
            row = next((r for r in store.owned(connection, owner) if r.name == new.name), None)
            if row is None:
                return "created"
            store.check(connection, self.sealer, row)
            if row.reference or new.reference:
                same = row.reference == new.reference
            else:
                same = store.read_value(connection, self.sealer, row, row.current) == plain(new)
            return "unchanged" if same else f"changed {row.id}"

        found = await self.database.read(compare)
        if found == "created":
            await self.create(holder, new)
        elif found != "unchanged":
            found, _, secret_id = found.partition(" ")
            content = SecretContent(value=new.value, reference=new.reference)
            await self.set(holder, secret_id, content)
        return found

    async def scrub(self, environ: MutableMapping[str, str]) -> list[str]:
        """Delete from an environment what the vault has under the same name; return the names."""
        rows = await self.database.read(lambda c: store.owned(c, SHARED))
        return scrub(environ, [row.name for row in rows])

    def forget_user(self, connection: Connection, user_id: str) -> int:
        """Delete the secrets of a person who was deleted, in that transaction; returns how many."""
        leasing.revoke_all(connection, user_id, self.clock())
        rows = store.owned(connection, user_id)
        for row in rows:
            store.remove(connection, self.sealer, row.id)
            self.audit.append(
                connection,
                AuditEvent(
                    action="vault.delete",
                    outcome="ok",
                    target=row.id,
                    detail={"name": row.name, "why": "the owner was deleted"},
                ),
            )
        return len(rows)

    async def _release(self, row: Row[Any], version: int) -> SecretStr:
        """Read a value whose access is recorded; a broken seal is recorded too."""

        def read(connection: Connection) -> str | None:
            if row.reference and version == row.current:
                store.check(connection, self.sealer, row)
                return None
            return store.read_value(connection, self.sealer, row, version)

        try:
            value = await self.database.read(read)
        except SealBroken as broken:
            await self.audit.record(
                AuditEvent(
                    action="vault.broken",
                    outcome="failed",
                    target=row.id,
                    detail={"name": row.name, "version": version, "why": broken.detail},
                )
            )
            raise
        if value is not None:
            return SecretStr(value)
        scheme, _, place = row.reference.partition(":")
        path, _, key = place.rpartition("#")
        self._check_reference(row.reference)
        return await self.sources[scheme].read(path, key)

    async def _allow(
        self,
        holder: Holder,
        permission: str,
        action: str,
        target: str | None,
        address: str | None,
    ) -> None:
        if not holder.may(permission):
            await self._refused(holder, action, target, address, permission)
            raise PermissionDenied(f"This needs the permission {permission}. Ask an administrator.")

    async def _write(
        self,
        work: Callable[[Connection], Result],
        holder: Holder,
        action: str,
        target: str,
        address: str | None,
    ) -> Result:
        """Run work as one transaction; record what was refused or failed, after it rolled back."""
        try:
            return await self._commit(work)
        except (NotFound, Conflict) as refused:
            await self._refused(holder, action, target, address, refused.code)
            raise
        except SealBroken as broken:
            await self.audit.record(
                AuditEvent(
                    action="vault.broken",
                    outcome="failed",
                    principal=holder.id,
                    kind=holder.kind,
                    address=address,
                    target=target,
                    detail={"during": action, "why": broken.detail},
                )
            )
            raise

    async def _commit(self, work: Callable[[Connection], Result]) -> Result:
        try:
            return await self.database.write(work)
        except UaitError:
            raise
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(
                "The audit log or the vault cannot be written, so no secret is released. Check the "
                "disk and the database; the server's log has the reason."
            ) from error

    async def _refused(
        self, holder: Holder, action: str, target: str | None, address: str | None, why: str
    ) -> None:
        await self.audit.record(
            AuditEvent(
                action=action,
                outcome="refused",
                principal=holder.id,
                kind=holder.kind,
                address=address,
                target=target,
                detail={"why": why},
            )
        )

    def _note(
        self,
        connection: Connection,
        holder: Holder,
        action: str,
        target: str,
        address: str | None,
        **detail: Detail,
    ) -> None:
        self.audit.append(
            connection,
            AuditEvent(
                action=action,
                outcome="ok",
                principal=holder.id,
                kind=holder.kind,
                address=address,
                target=target,
                detail=detail,
            ),
        )

    def _check_reference(self, reference: str | None) -> None:
        scheme = (reference or "").partition(":")[0]
        if reference is not None and scheme not in self.sources:
            known = ", ".join(sorted(self.sources)) or "none"
            raise InvalidInput(
                f"No other vault is set up as {scheme!r} (set up: {known}). See "
                "`UaitApp.secret_sources`."
            )


def info(row: Row[Any]) -> SecretInfo:
    """Describe a row without its value."""
    return SecretInfo(
        id=row.id,
        name=row.name,
        description=row.description,
        shared=row.owner == SHARED,
        reference=row.reference,
        version=row.current,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def plain(content: SecretContent) -> str | None:
    """Return the text of a value that is to be sealed."""
    return content.value.get_secret_value() if content.value else None
