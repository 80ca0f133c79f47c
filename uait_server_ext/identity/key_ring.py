"""The Ed25519 keys that sign and verify access tokens; their private halves are sealed.

::

    created ──(rotation: by age, or asked for)──> retired ──(end of grace)──> gone
    signs and verifies                            verifies only

Functions of a connection; who calls them, and when, is `tokens.py`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, Row, delete, func, or_, select, update

from uait_server_ext.errors import NotFound, Unavailable
from uait_server_ext.storage.database import raise_generation
from uait_server_ext.storage.ids import new_id

from .tables import signing_keys

GENERATION = "tokens"
"""Raised whenever the key ring or the list of revoked tokens changes."""


class Sealer(Protocol):
    """Keeps what must be read back, encrypted (`storage/sealing.py`)."""

    def put(self, connection: Connection, name: str, plaintext: bytes) -> None: ...
    def get(self, connection: Connection, name: str) -> bytes: ...
    def delete(self, connection: Connection, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """The public half of a key; `expires_at` is set from its retirement on."""

    kid: str
    public: Ed25519PublicKey
    jwk: dict[str, Any]
    created_at: float
    expires_at: float | None

    def verifies_at(self, time: float) -> bool:
        """Tell whether tokens of this key still count."""
        return self.expires_at is None or time < self.expires_at


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that verifies, by kid, and the one that signs."""

    keys: Mapping[str, VerifyingKey]
    signer: VerifyingKey
    private: Ed25519PrivateKey = field(repr=False)


def load(connection: Connection, sealer: Sealer) -> KeyRing | None:
    """Read the ring; None where no key was ever made.

    Raises:
        Unavailable: a row is no Ed25519 key, or does not fit its sealed private half. Tokens
            cannot be trusted then, so nothing is issued or accepted.
    """
    rows = connection.execute(select(signing_keys).order_by(signing_keys.c.created_at.desc())).all()
    signing = [row for row in rows if row.retired_at is None]
    if not signing:
        return None
    keys = {row.kid: verifying_key(row) for row in rows}
    signer = keys[signing[0].kid]
    try:
        private = Ed25519PrivateKey.from_private_bytes(sealer.get(connection, sealed(signer.kid)))
    except (ValueError, NotFound):
        raise broken(signer.kid) from None
    if raw(private.public_key()) != raw(signer.public):
        raise broken(signer.kid)
    return KeyRing(keys, signer, private)


def rotate(
    connection: Connection,
    sealer: Sealer,
    *,
    now: float,
    grace: float,
    only_older_than: float = 0.0,
) -> bool:
    """Make a new signing key; the old ones verify for `grace` seconds more. Tell whether it did.

    Args:
        only_older_than: leave a younger signing key (seconds): another process was faster.
    """
    newest = connection.scalar(
        select(func.max(signing_keys.c.created_at)).where(signing_keys.c.retired_at.is_(None))
    )
    if newest is not None and now - newest < only_older_than:
        return False
    drop_expired(connection, sealer, now)
    connection.execute(
        update(signing_keys)
        .where(or_(signing_keys.c.expires_at.is_(None), signing_keys.c.expires_at > now + grace))
        .values(retired_at=func.coalesce(signing_keys.c.retired_at, now), expires_at=now + grace)
    )
    private = Ed25519PrivateKey.generate()
    kid = new_id("key")
    connection.execute(
        signing_keys.insert().values(
            kid=kid, public_jwk=json.dumps(jwk(kid, private.public_key())), created_at=now
        )
    )
    sealer.put(connection, sealed(kid), private.private_bytes_raw())
    raise_generation(connection, GENERATION)
    return True


def drop_expired(connection: Connection, sealer: Sealer, now: float) -> None:
    """Delete the keys whose grace is over, and their private halves."""
    over = signing_keys.c.expires_at <= now
    for kid in connection.scalars(select(signing_keys.c.kid).where(over)).all():
        sealer.delete(connection, sealed(kid))
    connection.execute(delete(signing_keys).where(over))


def verifying_key(row: Row[Any]) -> VerifyingKey:
    """Read one row; only an Ed25519 key passes, whatever is written there."""
    try:
        found = json.loads(row.public_jwk)
        if (found["kty"], found["crv"], found["kid"]) != ("OKP", "Ed25519", row.kid):
            raise broken(row.kid)
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(found["x"] + "="))
    except (ValueError, TypeError, KeyError):
        raise broken(row.kid) from None
    return VerifyingKey(row.kid, public, jwk(row.kid, public), row.created_at, row.expires_at)


def jwk(kid: str, public: Ed25519PublicKey) -> dict[str, Any]:
    """Write a public key as JWK (RFC 8037)."""
    x = base64.urlsafe_b64encode(raw(public)).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid, "alg": "EdDSA", "use": "sig"}


def raw(public: Ed25519PublicKey) -> bytes:
    """Return the 32 bytes of a public key."""
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def sealed(kid: str) -> str:
    """Return the name under which the private half is sealed."""
    return f"jwt:{kid}"


def broken(kid: str) -> Unavailable:
    """Describe a key that is not one of ours."""
    return Unavailable(
        f"The signing key {kid} in the database is not an Ed25519 key that UAIT made. Restore the "
        "database and the master key that belong together, or delete the row."
    )
