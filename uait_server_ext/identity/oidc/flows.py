"""A login between the browser's leaving for the provider and its coming back; used once.

The row holds no secret: the state is kept as its hash, and the PKCE verifier and the nonce are
derived from the state and the binding cookie, which only the browser that began has.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, delete, insert, select

from uait_server_ext.identity.tables import login_flows

KIND = "oidc"
LIFETIME_SECONDS = 600.0

Purpose = Literal["login", "link"]


@dataclass(frozen=True, slots=True)
class Flow:
    """What is known when the browser comes back.

    Attributes:
        next: where the browser goes after the login.
        user_id: for linking, who began, in which session and at which epoch.
    """

    provider: str
    purpose: Purpose
    redirect_uri: str
    next: str
    user_id: str | None = None
    session_id: str | None = None
    epoch: int | None = None


def derive(binding: str, state: str, what: Literal["verifier", "nonce"]) -> str:
    """Return 43 URL-safe characters (256 bits) that only holders of both values can compute."""
    digest = hmac.digest(binding.encode(), f"uait oidc {what}\0{state}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def keep(connection: Connection, flow: Flow, *, state: str, binding: str, now: float) -> None:
    """Store a flow for ten minutes, and clear those that nobody came back to."""
    connection.execute(delete(login_flows).where(login_flows.c.expires_at <= now))
    connection.execute(
        insert(login_flows).values(
            state_sha256=sha256(state),
            kind=KIND,
            binding_sha256=sha256(binding),
            data=json.dumps(asdict(flow)),
            expires_at=now + LIFETIME_SECONDS,
        )
    )


def take(connection: Connection, *, state: str, binding: str, now: float) -> Flow | None:
    """Return a flow and end it; none where it is unknown, used, late or another browser's.

    A state that another browser brings has leaked, so it is ended too.
    """
    here = (login_flows.c.state_sha256 == sha256(state)) & (login_flows.c.kind == KIND)
    row = connection.execute(select(login_flows).where(here)).one_or_none()
    # Of two callbacks at once, in whatever processes, the one whose row it was goes on.
    if row is None or not connection.execute(delete(login_flows).where(here)).rowcount:
        return None
    if row.expires_at <= now or not hmac.compare_digest(row.binding_sha256, sha256(binding)):
        return None
    return Flow(**json.loads(row.data))


def sha256(value: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
