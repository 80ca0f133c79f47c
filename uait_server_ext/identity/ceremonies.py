"""The challenge of a passkey ceremony (WebAuthn level 3) between its two halves.

The first half stores the SHA-256 of the challenge, bound to the browser that asked (`begin`). The
second takes that row away (`take`) in a transaction of its own, before anything is verified: so a
challenge is good once, also for an answer that fails.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import Connection, delete

from uait_server_ext.errors import FlowInvalid, InvalidInput, Unauthenticated

from .tables import login_flows

CEREMONY_SECONDS = 5 * 60
MAX_CLIENT_DATA = 8192

Ceremony = Literal["passkey-add", "passkey"]
Credential = Mapping[str, Any]
"""What `navigator.credentials` gave the page, in the JSON form of WebAuthn section 5.1.8."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge that was taken, base64url, and the user to whom the ceremony is bound, if any."""

    text: str = field(repr=False)
    user_id: str | None


def begin(
    connection: Connection,
    kind: Ceremony,
    challenge: str,
    binding: str,
    user_id: str | None,
    at: float,
) -> None:
    """Store that a browser was given a challenge; ceremonies that nobody ended are forgotten."""
    connection.execute(delete(login_flows).where(login_flows.c.expires_at < at))
    connection.execute(
        login_flows.insert().values(
            state_sha256=sha256(challenge),
            kind=kind,
            binding_sha256=sha256(binding),
            data=json.dumps({"user": user_id}),
            expires_at=at + CEREMONY_SECONDS,
        )
    )


def take(
    connection: Connection, kind: Ceremony, credential: Credential, binding: str | None, at: float
) -> Challenge:
    """Use up the challenge that a credential answers; commit before verifying the answer.

    Raises:
        FlowInvalid: the challenge is unknown, was used, or is another browser's.
        Unauthenticated: it is too old.
        InvalidInput: this is no credential.
    """
    challenge = challenge_of(credential)
    flow = connection.execute(
        delete(login_flows)
        .where(login_flows.c.state_sha256 == sha256(challenge), login_flows.c.kind == kind)
        .returning(login_flows.c.binding_sha256, login_flows.c.data, login_flows.c.expires_at)
    ).one_or_none()
    if flow is None or not hmac.compare_digest(sha256(binding or ""), flow.binding_sha256):
        raise unknown_ceremony()
    if flow.expires_at < at:
        raise refused()
    return Challenge(challenge, json.loads(flow.data)["user"])


def challenge_of(credential: Credential) -> str:
    """Return the challenge that the authenticator signed, as the browser reports it.

    Raises:
        InvalidInput: the credential has not the form of WebAuthn's JSON.
    """
    encoded = response_of(credential).get("clientDataJSON")
    try:
        if not isinstance(encoded, str) or len(encoded) > MAX_CLIENT_DATA:
            raise TypeError
        data = json.loads(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        challenge = data["challenge"]
        if not isinstance(challenge, str) or data.get("crossOrigin"):
            raise TypeError
        challenge.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidInput(
            "This is no WebAuthn credential of this page. Send what "
            "`navigator.credentials` gave, as JSON."
        ) from None
    return challenge


def response_of(credential: Credential) -> Mapping[str, Any]:
    """Return the authenticator's response within a credential, empty where there is none."""
    response = credential.get("response")
    return response if isinstance(response, dict) else {}


def relying_party(origin: str) -> str:
    """Return the host name under which passkeys are made for an origin.

    Raises:
        InvalidInput: the origin has an IP address, or is neither https nor this machine: browsers
            make no passkeys there.
    """
    parts = urlsplit(origin)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        local = host == "localhost" or host.endswith(".localhost")
        if host and (parts.scheme == "https" or local):
            return host
        raise InvalidInput(
            "Browsers make passkeys over https only. Open this server by its https address."
        ) from None
    raise InvalidInput(
        "Browsers make passkeys for host names only, not for IP addresses. Open this server by its "
        "name; on this machine by http://localhost."
    )


def unknown_ceremony() -> FlowInvalid:
    """Say that a challenge is not one that waits for this browser."""
    return FlowInvalid(
        "This passkey request is unknown, was used already, or began in another browser. Try again."
    )


def refused() -> Unauthenticated:
    """Say that a passkey proved nothing, without why: an attacker would learn from that."""
    return Unauthenticated("The passkey was not accepted. Try again, or log in another way.")


def sha256(text: str) -> str:
    """Hash a text that is random enough not to be guessed."""
    return hashlib.sha256(text.encode()).hexdigest()
