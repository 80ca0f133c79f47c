"""API keys: long-lived credentials of programs, narrower than the person who made them.

A key is `uait_` and 256 random bits, shown once and kept as SHA-256. It holds permissions of its
maker (and never more than that person holds at the moment of use), can be bound to operations and
networks, and expires. Which key a request carries is `credentials.py`; what it may do with it is
here and in the authenticator.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Row, func, or_, select, update

from uait_server_ext.errors import Conflict, NotFound, PermissionDenied
from uait_server_ext.events.audit import AuditEvent
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, new_id, new_secret

from .credentials import API_KEY, API_KEY_PREFIX, digest
from .key_limits import ApiKey
from .key_ring import Sealer
from .principal import Principal
from .tables import api_keys
from .token_models import MAX_KEY_DAYS, ApiKeyInfo, ApiKeyRequest, NewApiKey

if TYPE_CHECKING:
    from uait_server_ext.events.audit import AuditLog

    from .directory import Directory

DAY = 86_400.0
MAX_KEYS = 100
SHOWN_CHARACTERS = 12
LAST_USED_SECONDS = 60.0


class ApiKeys:
    """Make, find, list and revoke API keys.

    Args:
        max_days: the longest life of a new key, days.
    """

    def __init__(
        self,
        database: Database,
        directory: Directory,
        sealer: Sealer,
        audit: AuditLog,
        clock: Clock,
        *,
        max_days: int = MAX_KEY_DAYS,
    ) -> None:
        self.database = database
        self.directory = directory
        self.sealer = sealer
        self.audit = audit
        self.clock = clock
        self.max_days = max_days
        self._marked: dict[str, float] = {}
        directory.on_delete.append(self._forget_person)

    async def create(
        self, principal: Principal, request: ApiKeyRequest, address: str | None = None
    ) -> NewApiKey:
        """Make a key in the name of the caller.

        Raises:
            PermissionDenied: the caller is itself a key or kernel, or lacks a permission that the
                key is to have.
            Conflict: the person has too many keys.
        """
        secret, key_id = new_secret(API_KEY_PREFIX), new_id("key")
        signing_secret = new_secret("uaits") if request.signing else None
        days = min(request.expires_in_days, self.max_days)
        now = self.clock()
        row = {
            "id": key_id,
            "secret_sha256": digest(secret),
            "prefix": secret[:SHOWN_CHARACTERS],
            "name": request.name,
            "user_id": principal.id,
            "scope": " ".join(sorted(set(request.permissions))),
            "routes": "\n".join(request.routes),
            "networks": "\n".join(request.networks),
            "signing_secret": request.signing,
            "created_at": now,
            "expires_at": now + days * DAY,
        }

        def work(connection: Connection) -> PermissionDenied | ApiKeyInfo:
            if refusal := self._may_create(connection, principal, set(request.permissions)):
                self._record(connection, "refused", "key.create", principal, address)
                return refusal
            mine = select(func.count()).where(api_keys.c.user_id == principal.id, self._living())
            if (connection.scalar(mine) or 0) >= MAX_KEYS:
                raise Conflict(f"You have {MAX_KEYS} API keys. Revoke those that you do not need.")
            connection.execute(api_keys.insert().values(**row))
            if signing_secret:
                self.sealer.put(connection, sealed(key_id), signing_secret.encode("ascii"))
            self._record(connection, "ok", "key.create", principal, address, key_id)
            return info(connection.execute(api_keys.select().where(api_keys.c.id == key_id)).one())

        made = await self.database.write(work)
        if isinstance(made, PermissionDenied):
            raise made
        return NewApiKey(key=secret, signing_secret=signing_secret, info=made)

    def _may_create(
        self, connection: Connection, principal: Principal, wanted: set[str]
    ) -> PermissionDenied | None:
        """Say why a caller may not make a key with these permissions; None where they may."""
        if principal.kind != "user":
            # Else a key that leaked could make another that outlives its revocation.
            return PermissionDenied("A key or kernel cannot make API keys. Log in yourself.")
        standing = self.directory.standing(connection, principal.id)
        held = principal.permissions & standing.permissions if standing else frozenset()
        if more := wanted - held:
            return PermissionDenied(
                f"A key cannot have permissions that you do not hold: {', '.join(sorted(more))}.",
                permissions=sorted(more),
            )
        return None

    async def find(self, secret: str, address: str, method: str, path: str) -> ApiKey | None:
        """Return the living key of a secret, for this request; None where there is none.

        Raises:
            PermissionDenied: the key is known and is bound to other operations or networks.
        """
        key = await self.lookup(secret)
        if key is None:
            return None
        if not key.comes_from(address):
            await self._refuse(key, address, "network")
            raise PermissionDenied("This API key may not be used from this address.")
        if not key.reaches(method, path):
            await self._refuse(key, address, "route")
            raise PermissionDenied(
                "This API key is limited to other operations. See its list on your account page."
            )
        await self._mark_used(key.id)
        return key

    async def lookup(self, secret: str) -> ApiKey | None:
        """Return the living key of a secret, whatever it is used for."""
        if not API_KEY.fullmatch(secret):
            return None
        query = select(api_keys).where(api_keys.c.secret_sha256 == digest(secret), self._living())
        row = await self.database.read(lambda c: c.execute(query).one_or_none())
        return None if row is None else living(row)

    async def list(self, user_id: str) -> list[ApiKeyInfo]:
        """Return the living keys of a person, the newest first."""
        query = (
            select(api_keys)
            .where(api_keys.c.user_id == user_id, self._living())
            .order_by(api_keys.c.created_at.desc(), api_keys.c.id)
        )
        return await self.database.read(lambda c: [info(row) for row in c.execute(query)])

    async def revoke(self, principal: Principal, key_id: str, address: str | None = None) -> None:
        """End a key of the caller.

        Raises:
            NotFound: the caller has no such key.
        """

        def work(connection: Connection) -> None:
            ended = connection.execute(
                update(api_keys)
                .where(
                    api_keys.c.id == key_id,
                    api_keys.c.user_id == principal.id,
                    api_keys.c.revoked_at.is_(None),
                )
                .values(revoked_at=self.clock())
                .returning(api_keys.c.signing_secret)
            ).one_or_none()
            if ended is None:
                raise NotFound("You have no such API key. See the list of your keys.")
            if ended.signing_secret:
                self.sealer.delete(connection, sealed(key_id))
            raise_generation(connection, "identity")
            self._record(connection, "ok", "key.revoke", principal, address, key_id)

        await self.database.write(work)

    def _forget_person(self, connection: Connection, user_id: str) -> None:
        """Delete the signing secrets of a person who is being deleted; their keys go with them."""
        signing = select(api_keys.c.id).where(
            api_keys.c.user_id == user_id, api_keys.c.signing_secret
        )
        for key_id in connection.scalars(signing).all():
            self.sealer.delete(connection, sealed(key_id))

    def _living(self) -> Any:
        """Return the condition that a key is neither revoked nor expired."""
        return api_keys.c.revoked_at.is_(None) & or_(
            api_keys.c.expires_at.is_(None), api_keys.c.expires_at > self.clock()
        )

    async def _mark_used(self, key_id: str) -> None:
        """Write when a key was last used, at most once a minute."""
        now = self.clock()
        if now - self._marked.get(key_id, -LAST_USED_SECONDS) < LAST_USED_SECONDS:
            return
        if len(self._marked) >= 10_000:
            self._marked.clear()
        self._marked[key_id] = now
        change = update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now)
        await self.database.write(lambda connection: connection.execute(change))

    async def _refuse(self, key: ApiKey, address: str, reason: str) -> None:
        await self.audit.record(
            AuditEvent(
                action="key.use",
                outcome="refused",
                principal=key.user_id,
                kind="api-key",
                address=address,
                target=key.id,
                detail={"reason": reason},
            )
        )

    def _record(
        self,
        connection: Connection,
        outcome: Literal["ok", "refused"],
        action: str,
        principal: Principal,
        address: str | None,
        key_id: str | None = None,
    ) -> None:
        self.audit.append(
            connection,
            AuditEvent(
                action=action,
                outcome=outcome,
                principal=principal.id,
                kind=principal.kind,
                address=address,
                target=key_id,
            ),
        )


def sealed(key_id: str) -> str:
    """Return the name under which a key's signing secret is sealed."""
    return f"signing:{key_id}"


def lines(text: str) -> list[str]:
    """Return the lines of a column that holds a list."""
    return text.split("\n") if text else []


def living(row: Row[Any]) -> ApiKey:
    """Read a row for use."""
    return ApiKey(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        scope=frozenset(row.scope.split()),
        routes=tuple(lines(row.routes)),
        networks=tuple(ip_network(line) for line in lines(row.networks)),
        signing=row.signing_secret,
        expires_at=row.expires_at,
    )


def info(row: Row[Any]) -> ApiKeyInfo:
    """Read a row for its owner."""
    return ApiKeyInfo(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        permissions=row.scope.split(),
        routes=lines(row.routes),
        networks=lines(row.networks),
        signing=row.signing_secret,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
