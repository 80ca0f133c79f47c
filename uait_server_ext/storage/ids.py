"""Where ids and the time come from, so that tests can put their own in."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Return the seconds since the epoch (UTC)."""

now: Clock = time.time

ID_BYTES = 10


def new_id(prefix: str) -> str:
    """Return a fresh id, `prefix_` and 16 lower-case letters and digits (80 random bits)."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()}"


def new_secret(prefix: str) -> str:
    """Return a fresh credential, `prefix_` and 43 URL-safe characters (256 random bits)."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"
