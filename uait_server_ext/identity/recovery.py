"""Recovery codes: ten passwords of 80 random bits, each good once, kept as SHA-256 only.

A plain hash is enough: 80 random bits cannot be guessed from it, unlike a person's password.
"""

from __future__ import annotations

import base64
import hashlib
import secrets

from sqlalchemy import Connection, delete, func, select, update

from uait_server_ext.storage.ids import Clock, now

from .tables import recovery_codes

CODES = 10
CODE_BYTES = 10
GROUP = 4


class RecoveryCodes:
    """The recovery codes of all people. Each method runs in the caller's transaction."""

    def __init__(self, clock: Clock = now) -> None:
        self.clock = clock

    def renew(self, connection: Connection, user_id: str) -> list[str]:
        """Make ten new codes, to be shown once; the old ones are void."""
        self.remove(connection, user_id)
        codes = [new_code() for _ in range(CODES)]
        connection.execute(
            recovery_codes.insert(),
            [{"code_sha256": digest(code), "user_id": user_id} for code in codes],
        )
        return codes

    def use(self, connection: Connection, user_id: str, code: str) -> bool:
        """Take a code of this user, once."""
        used = connection.execute(
            update(recovery_codes)
            .where(
                recovery_codes.c.code_sha256 == digest(code),
                recovery_codes.c.user_id == user_id,
                recovery_codes.c.used_at.is_(None),
            )
            .values(used_at=self.clock())
        )
        return used.rowcount == 1

    def left(self, connection: Connection, user_id: str) -> int:
        """Count the codes that were not used."""
        return (
            connection.scalar(
                select(func.count()).where(
                    recovery_codes.c.user_id == user_id, recovery_codes.c.used_at.is_(None)
                )
            )
            or 0
        )

    def remove(self, connection: Connection, user_id: str) -> None:
        """Forget every code of a user."""
        connection.execute(delete(recovery_codes).where(recovery_codes.c.user_id == user_id))


def new_code() -> str:
    """Return a code such as `k3vq-7xwd-2m5a-ybnt`."""
    text = base64.b32encode(secrets.token_bytes(CODE_BYTES)).decode().lower()
    return "-".join(text[start : start + GROUP] for start in range(0, len(text), GROUP))


def digest(code: str) -> str:
    """Hash a code as it was meant: without regard to case, hyphens and spaces."""
    plain = "".join(code.split()).replace("-", "").lower()
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
