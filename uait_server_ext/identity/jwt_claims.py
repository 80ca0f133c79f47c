"""The shape of our own JSON Web Tokens, read more strictly than the libraries read them.

What is checked here needs no key: size, three canonical base64url parts, JSON without repeated
names, exactly our header, our claims with exactly their types (RFC 8725, RFC 9068). The signature
and the times are `tokens.py`.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast, get_args

from .credentials import MAX_TOKEN_BYTES

Audience = Literal["uait-user", "uait-kernel", "uait-service"]
AUDIENCES: frozenset[str] = frozenset(get_args(Audience))

MAX_TIME = 1 << 40  # seconds; far beyond any date, far below what overflows
ALGORITHM = "EdDSA"
TYPE = "at+jwt"
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
HEADER_NAMES = {"alg", "typ", "kid"}


class Malformed(ValueError):
    """The text is no token of ours. Caught in `tokens.py`: the caller is not told which rule."""


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a verified access token says.

    Attributes:
        epoch: of the user at the time of issue; the token is dead when the user's is higher.
        scope: the permissions it may use at most.
        issued_at, expires_at, authenticated_at: seconds since the epoch (UTC).
        kernel_id: of the kernel that it belongs to.
    """

    user_id: str
    jti: str
    epoch: int
    scope: frozenset[str]
    audience: Audience
    issued_at: float
    expires_at: float
    kernel_id: str | None
    authenticated_at: float


@dataclass(frozen=True, slots=True)
class Unverified:
    """A well-formed token whose signature nobody has checked."""

    kid: str
    issuer: str
    not_before: float
    claims: AccessClaims


def parse(token: str) -> Unverified:
    """Read a token's form.

    Raises:
        Malformed: it is too long, not canonical, or says anything that ours do not say.
    """
    if len(token) > MAX_TOKEN_BYTES or not COMPACT.fullmatch(token):
        raise Malformed("form")
    header_part, payload_part, _ = token.split(".")
    header = json_object(header_part)
    # No jwk, jku, x5u, crit, b64, zip or cty: a token never says how it is to be verified.
    if header.keys() != HEADER_NAMES or header["alg"] != ALGORITHM or header["typ"] != TYPE:
        raise Malformed("header")
    payload = json_object(payload_part)
    audience = text(payload, "aud")
    if audience not in AUDIENCES:
        raise Malformed("aud")
    issued_at = seconds(payload, "iat")
    kernel_id = text(payload, "kernel") if "kernel" in payload else None
    return Unverified(
        kid=text(header, "kid"),
        issuer=text(payload, "iss"),
        not_before=seconds(payload, "nbf") if "nbf" in payload else issued_at,
        claims=AccessClaims(
            user_id=text(payload, "sub"),
            jti=text(payload, "jti"),
            epoch=whole(payload, "epoch"),
            scope=frozenset(text(payload, "scope", empty=True).split()),
            audience=cast(Audience, audience),
            issued_at=issued_at,
            expires_at=seconds(payload, "exp"),
            kernel_id=kernel_id,
            authenticated_at=seconds(payload, "auth_time"),
        ),
    )


def json_object(part: str) -> dict[str, Any]:
    """Decode one part of a token: canonical base64url of a JSON object without repeated names.

    Raises:
        Malformed: it is anything else.
    """
    try:
        content = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        # Bits that decoding drops would let one token have several texts.
        if base64.urlsafe_b64encode(content).rstrip(b"=").decode() != part:
            raise Malformed("base64")
        decoded = json.loads(
            content.decode("utf-8"), object_pairs_hook=without_repeats, parse_constant=refuse
        )
    except (ValueError, RecursionError):
        raise Malformed("json") from None
    if not isinstance(decoded, dict):
        raise Malformed("json")
    return decoded


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object whose names are all different; readers disagree on which repeat counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("repeated name")
    return found


def refuse(constant: str) -> NoReturn:
    """Refuse NaN and the infinities, which are not JSON."""
    raise Malformed(constant)


def text(claims: dict[str, Any], name: str, *, empty: bool = False) -> str:
    """Return a claim that must be text."""
    value = claims.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise Malformed(name)
    return value


def whole(claims: dict[str, Any], name: str) -> int:
    """Return a claim that must be a whole number that is not negative."""
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= MAX_TIME:
        raise Malformed(name)
    return value


def seconds(claims: dict[str, Any], name: str) -> float:
    """Return a claim that must be a time; ours are whole seconds."""
    return float(whole(claims, name))
