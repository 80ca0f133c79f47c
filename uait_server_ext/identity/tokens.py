"""Access tokens: short-lived JSON Web Tokens for API and CLI clients and kernels (RFC 9068).

Signed with Ed25519; `typ` is `at+jwt`; the audience says for whom: a person's client, a kernel, a
service. They never reach a browser. A token counts until it expires, is revoked by its jti, its
key leaves the ring, or its user's epoch moves on (that last is the authenticator's to compare).

Clocks of several replicas may differ by `LEEWAY_SECONDS`: so far ahead a token may have been
issued. Its end has no leeway: a client renews it earlier anyway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError
from sqlalchemy import Connection, delete, select

from uait_server_ext.errors import Unauthenticated
from uait_server_ext.storage.database import Database, raise_generation, read_generation
from uait_server_ext.storage.ids import Clock, new_id

from . import key_ring
from .jwt_claims import ALGORITHM, TYPE, AccessClaims, Audience, Malformed, parse
from .key_ring import GENERATION, KeyRing, Sealer
from .tables import revoked_tokens

LEEWAY_SECONDS = 30.0
LIFETIME_SECONDS = 600
KERNEL_LIFETIME_SECONDS = 300
ROTATE_SECONDS = 30 * 86_400.0
GRACE_SECONDS = 900.0  # longer than any token lives, so that a rotation ends none
CACHE_ENTRIES = 4096
JTI_PREFIX = "jti"


@dataclass(slots=True)
class State:
    """What verifying needs, as it stood at one generation."""

    generation: int
    ring: KeyRing
    revoked: frozenset[str]
    verified: dict[bytes, tuple[str, AccessClaims]] = field(default_factory=dict, repr=False)


class AccessTokens:
    """Issue, verify and revoke access tokens; keep the key ring.

    Args:
        issuer: the `iss` claim: this installation's name, the same in all its replicas.
        lifetime: of a token for a person's client or a service, seconds.
        kernel_lifetime: of a token for a kernel, seconds.
        rotate_after: age at which the signing key is replaced, seconds.
        grace: how long a replaced key verifies, seconds.
    """

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        clock: Clock,
        issuer: str,
        *,
        lifetime: int = LIFETIME_SECONDS,
        kernel_lifetime: int = KERNEL_LIFETIME_SECONDS,
        rotate_after: float = ROTATE_SECONDS,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self.database = database
        self.sealer = sealer
        self.clock = clock
        self.issuer = issuer
        self._lifetime = lifetime
        self._kernel_lifetime = kernel_lifetime
        self.rotate_after = rotate_after
        self.grace = grace
        self._state: State | None = None
        self._jws = PyJWS(algorithms=[ALGORITHM])

    async def open(self) -> None:
        """Load the key ring, or make the first key.

        Raises:
            Unavailable: a stored key is not one of ours; the server must not start.
        """
        await self._current()

    def lifetime(self, audience: Audience = "uait-user") -> int:
        """Return how long a new token lives, in seconds."""
        return self._kernel_lifetime if audience == "uait-kernel" else self._lifetime

    async def issue(
        self,
        *,
        user_id: str,
        epoch: int,
        scope: Collection[str],
        authenticated_at: float,
        audience: Audience = "uait-user",
        kernel_id: str | None = None,
        jti: str | None = None,
    ) -> str:
        """Sign a new token.

        Args:
            epoch: the user's, as it is now.
            authenticated_at: when the person last proved who they are.
            jti: instead of a new one, where the caller keeps it to revoke the token later.
        """
        now = self.clock()
        state = await self._current()
        if now - state.ring.signer.created_at >= self.rotate_after:
            await self._rotate(self.grace, only_older_than=self.rotate_after)
            state = await self._current()
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": audience,
            "sub": user_id,
            "jti": jti or new_jti(),
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now) + self.lifetime(audience),
            "scope": " ".join(sorted(scope)),
            "epoch": epoch,
            "auth_time": int(authenticated_at),
        }
        if kernel_id is not None:
            claims["kernel"] = kernel_id
        return self._jws.encode(
            json.dumps(claims, separators=(",", ":")).encode(),
            state.ring.private,
            algorithm=ALGORITHM,
            headers={"typ": TYPE, "kid": state.ring.signer.kid},
        )

    async def verify(self, token: str, audiences: Collection[str]) -> AccessClaims:
        """Return what a token says.

        Raises:
            Unauthenticated: it is not ours, not for these audiences, expired or revoked. The
                message does not tell which.
        """
        state = await self._current()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = state.verified.get(digest)
        kid, claims = known or self._verify_anew(state.ring, token)
        now = self.clock()
        key = state.ring.keys[kid]
        if (
            now >= claims.expires_at
            or not key.verifies_at(now)
            or claims.audience not in audiences
            or claims.jti in state.revoked
        ):
            raise refused()
        if known is None:
            if len(state.verified) >= CACHE_ENTRIES:
                del state.verified[next(iter(state.verified))]
            state.verified[digest] = (kid, claims)
        return claims

    def _verify_anew(self, ring: KeyRing, token: str) -> tuple[str, AccessClaims]:
        try:
            unverified = parse(token)
            # Only a name in this dictionary: a kid reaches neither a file nor a query.
            key = ring.keys[unverified.kid]
            self._jws.decode_complete(token, key.public, algorithms=[ALGORITHM])
        except (Malformed, KeyError, PyJWTError):
            raise refused() from None
        latest = self.clock() + LEEWAY_SECONDS
        claims = unverified.claims
        if (
            unverified.issuer != self.issuer
            or claims.issued_at > latest
            or unverified.not_before > latest
        ):
            raise refused()
        return unverified.kid, claims

    async def revoke(self, jti: str, expires_at: float | None = None) -> None:
        """End a token now; without its expiry, it is remembered for as long as any could live."""
        await self.database.write(lambda connection: self.revoke_now(connection, jti, expires_at))

    def revoke_now(self, connection: Connection, jti: str, expires_at: float | None = None) -> None:
        """End a token in the transaction of the caller."""
        now = self.clock()
        longest = max(self._lifetime, self._kernel_lifetime) + LEEWAY_SECONDS
        connection.execute(delete(revoked_tokens).where(revoked_tokens.c.expires_at < now))
        if not connection.scalar(select(revoked_tokens.c.jti).where(revoked_tokens.c.jti == jti)):
            connection.execute(
                revoked_tokens.insert().values(jti=jti, expires_at=expires_at or now + longest)
            )
        raise_generation(connection, GENERATION)
        raise_generation(connection, "identity")

    async def rotate(self, grace: float | None = None) -> None:
        """Replace the signing key now; with `grace=0` every token of the old keys ends at once."""
        await self._rotate(self.grace if grace is None else grace)

    async def jwks(self) -> dict[str, Any]:
        """Return the public keys that verify now, as a JWK set (RFC 7517)."""
        state = await self._current()
        now = self.clock()
        return {"keys": [key.jwk for key in state.ring.keys.values() if key.verifies_at(now)]}

    async def _rotate(self, grace: float, *, only_older_than: float = 0.0) -> None:
        def work(connection: Connection) -> None:
            rotated = key_ring.rotate(
                connection,
                self.sealer,
                now=self.clock(),
                grace=grace,
                only_older_than=only_older_than,
            )
            if rotated:
                raise_generation(connection, "identity")

        await self.database.write(work)

    async def _current(self) -> State:
        """Return the state, read anew where another request or process has changed it."""
        generation = await self.database.generation(GENERATION)
        state = self._state
        if state is None or state.generation != generation:
            state = await self.database.read(self._load)
            if state is None:
                await self._rotate(self.grace, only_older_than=self.rotate_after)
                state = await self.database.read(self._load)
                assert state
            self._state = state
        return state

    def _load(self, connection: Connection) -> State | None:
        # The generation first: what changes after it makes this state stale, never wrong.
        generation = read_generation(connection, GENERATION)
        ring = key_ring.load(connection, self.sealer)
        if ring is None:
            return None
        unexpired = revoked_tokens.c.expires_at >= self.clock()
        revoked = connection.scalars(select(revoked_tokens.c.jti).where(unexpired))
        return State(generation, ring, frozenset(revoked))


def new_jti() -> str:
    """Return a fresh token id."""
    return new_id(JTI_PREFIX)


def refused() -> Unauthenticated:
    """Return the one answer for every token that does not count."""
    return Unauthenticated(
        "The access token is not valid or has expired. Renew it, or log in again.",
        error="invalid_token",
    )
