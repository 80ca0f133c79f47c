"""The one place that takes a credential out of a request's headers.

A token or an API key comes as `Authorization: Bearer …` (or Jupyter's `token …`) or, for clients
that cannot set that, as `X-API-Key: …`: both mean the same and take the same way from here on.
Two credentials, an empty one, another scheme (Basic, Digest …) are refused, never ignored: a
request does not fall back to its cookie. A query string is no place for a secret and is not looked
at (RFC 6750 section 5.3).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from uait_server_ext.errors import Unauthenticated

MAX_TOKEN_BYTES = 8192
API_KEY_PREFIX = "uait"
API_KEY = re.compile(rf"{API_KEY_PREFIX}_[A-Za-z0-9_-]{{43}}", re.ASCII)
TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 9110 section 11.2
SCHEMES = frozenset({"bearer", "token"})

CredentialKind = Literal["api-key", "access-token", "other"]


@dataclass(frozen=True, slots=True)
class Credential:
    """What a request's headers carry to prove who sends it; its form is checked, nothing else.

    Attributes:
        kind: what the secret looks like; `other` may be JupyterHub's or a kernel's.
    """

    kind: CredentialKind
    secret: str = field(repr=False)


def credential_of(headers: Iterable[tuple[str, str]]) -> Credential | None:
    """Return the credential in a request's headers; None where there is none.

    Args:
        headers: every header line as it came, repeated names repeated.

    Raises:
        Unauthenticated: there are several, or one that cannot be a credential.
    """
    found = [
        (name.lower(), value)
        for name, value in headers
        if name.lower() in ("authorization", "x-api-key")
    ]
    if not found:
        return None
    if len(found) > 1:
        raise Unauthenticated("The request has more than one credential. Send one.")
    name, value = found[0]
    if len(value) > MAX_TOKEN_BYTES + len("Bearer "):
        raise Unauthenticated("The credential is longer than any. Send the key or token alone.")
    value = value.strip(" \t")
    if name == "authorization":
        scheme, _, value = value.partition(" ")
        if scheme.lower() not in SCHEMES:
            raise Unauthenticated(
                "This kind of Authorization is not known here. Send `Authorization: Bearer …`."
            )
        value = value.lstrip(" ")
    if not TOKEN68.fullmatch(value):
        raise Unauthenticated("The credential is empty or has characters that none has.")
    return Credential(kind_of(value), value)


def kind_of(secret: str) -> CredentialKind:
    """Tell what a secret looks like."""
    if API_KEY.fullmatch(secret):
        return "api-key"
    return "access-token" if secret.count(".") == 2 else "other"


def digest(secret: str) -> str:
    """Return how a credential is stored and looked up: its SHA-256 in hexadecimal.

    The secrets have 256 random bits: a slow hash would add nothing.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
