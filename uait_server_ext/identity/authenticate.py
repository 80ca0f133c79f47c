"""Turn what a request carries into a principal: one way in for cookies, tokens and keys.

A principal is cached by the SHA-256 of its credential for as long as nothing about people changes
(`Database.generation("identity")`), no kernel begins or ends, and at most `CACHE_SECONDS`; so a
revocation, a changed role or a disabled account holds from the next request on, in every process on
the database.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from uait_server_ext.errors import Unauthenticated
from uait_server_ext.storage.ids import Clock, now

from .credentials import kind_of
from .principal import KERNEL_PERMISSIONS, Principal

if TYPE_CHECKING:
    from uait_server_ext.storage.database import Database

    from .api_keys import ApiKeys
    from .directory import Directory, Standing
    from .factors import Factors
    from .kernel_proof import KernelBindings
    from .sessions import Sessions
    from .tokens import AccessTokens

CACHE_SECONDS = 30.0
CACHE_ENTRIES = 10_000
ENROL_PERMISSIONS = frozenset({"account:read", "account:write"})
"""What a person, and all that acts for them, may do until they have the factor that they need."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request carries to prove who sends it, and where it comes from and goes to.

    Attributes:
        kind: `session` for a cookie, `bearer` for a token or API key in a header.
        method: and `path`: the operation's key, for API keys that are limited to some.
    """

    kind: Literal["session", "bearer"]
    secret: str = field(repr=False)
    address: str
    method: str
    path: str

    def digest(self) -> str:
        """Return the key under which the answer is cached; holds no secret."""
        parts = (self.kind, self.secret, self.address, self.method, self.path)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class Authenticator:
    """Find the principal behind a credential."""

    def __init__(
        self,
        database: Database,
        *,
        directory: Directory,
        sessions: Sessions,
        tokens: AccessTokens,
        api_keys: ApiKeys,
        factors: Factors,
        kernels: KernelBindings,
        clock: Clock = now,
    ) -> None:
        self.database = database
        self.directory = directory
        self.sessions = sessions
        self.tokens = tokens
        self.api_keys = api_keys
        self.factors = factors
        self.kernels = kernels
        self.clock = clock
        self._cache: OrderedDict[str, tuple[tuple[int, int], float, Principal]] = OrderedDict()

    async def identify(self, presented: Presented) -> Principal:
        """Return who a credential stands for.

        Raises:
            Unauthenticated: the credential is unknown, expired, revoked, or its owner disabled.
            Unavailable: the store of sessions cannot be asked; nobody is let in meanwhile.
        """
        key = presented.digest()
        generation = (await self.database.generation("identity"), self.kernels.changes)
        cached = self._cache.get(key)
        if cached and cached[0] == generation and self.clock() < cached[1]:
            self._cache.move_to_end(key)
            return cached[2]
        self._cache.pop(key, None)
        if presented.kind == "session":
            principal, until = await self._by_session(presented.secret)
        elif kind_of(presented.secret) == "api-key":
            principal, until = await self._by_api_key(presented)
        else:
            principal, until = await self._by_token(presented.secret)
        self._cache[key] = (generation, min(until, self.clock() + CACHE_SECONDS), principal)
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)
        return principal

    async def _by_session(self, secret: str) -> tuple[Principal, float]:
        session = await self.sessions.find(secret)
        if session is None:
            raise Unauthenticated("Your session has ended. Log in again.")
        if session.pending:
            raise Unauthenticated("Your login is not complete: give the second factor.")
        standing = await self._standing(session.user_id, session.epoch)
        await self.sessions.touch(secret)
        principal = Principal(
            id=standing.user_id,
            name=standing.display_name,
            kind="user",
            permissions=standing.permissions,
            credential=session.id,
            authenticated_at=session.authenticated_at,
        )
        return principal, session.expires_at

    async def _by_token(self, token: str) -> tuple[Principal, float]:
        claims = await self.tokens.verify(
            token, audiences=("uait-user", "uait-kernel", "uait-service")
        )
        standing = await self._standing(claims.user_id, claims.epoch)
        permissions = standing.permissions & claims.scope
        kind: Literal["user", "kernel", "service"] = "user"
        if claims.audience == "uait-kernel":
            if claims.kernel_id is None or not self.kernels.stands(claims):
                raise Unauthenticated("The kernel of this token has ended.")
            kind, permissions = "kernel", permissions & KERNEL_PERMISSIONS
        elif claims.audience == "uait-service":
            kind = "service"
        principal = Principal(
            id=standing.user_id,
            name=standing.display_name,
            kind=kind,
            permissions=permissions,
            credential=claims.jti,
            authenticated_at=claims.authenticated_at if kind == "user" else 0.0,
        )
        return principal, claims.expires_at

    async def _by_api_key(self, presented: Presented) -> tuple[Principal, float]:
        key = await self.api_keys.find(
            presented.secret, presented.address, presented.method, presented.path
        )
        if key is None:
            raise Unauthenticated("This API key is not valid here. Make a new one if it expired.")
        standing = await self._standing(key.user_id, None)
        principal = Principal(
            id=standing.user_id,
            name=f"{standing.display_name} ({key.name})",
            kind="api-key",
            permissions=standing.permissions & key.scope,
            credential=key.id,
        )
        return principal, key.expires_at or float("inf")

    async def _standing(self, user_id: str, epoch: int | None) -> Standing:
        standing = await self.database.read(
            lambda connection: self.directory.standing(connection, user_id)
        )
        if standing is None or standing.disabled:
            raise Unauthenticated("This account is not active. Ask an administrator.")
        if epoch is not None and epoch != standing.epoch:
            raise Unauthenticated("Your account has changed, which ended this login. Log in again.")
        if self.factors.required(standing) and not await self.factors.methods(user_id):
            return replace(standing, permissions=standing.permissions & ENROL_PERMISSIONS)
        return standing
