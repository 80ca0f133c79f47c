"""Check an id_token (OpenID Connect Core 1.0, section 3.1.3.7; RFC 8725).

PyJWT checks the form and the signature; the claims are checked here, strictly and by our clock.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uait_server_ext.errors import LoginFailed, PermissionDenied

from .configuration import TENANT, ProviderConfig
from .metadata import Jwk

LEEWAY_SECONDS = 60.0
MAX_AGE_SECONDS = 600.0
MAX_LENGTH = 64 * 1024
MAX_SUBJECT = 200

KEY_OF: dict[str, tuple[str, str | None]] = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""The key type and curve an algorithm needs; every other one on the list is RSA."""


class UnknownKey(LoginFailed):
    """The token names a key that is not in the set: the set may be out of date."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the token must say."""

    config: ProviderConfig
    nonce: str = field(repr=False)
    now: float


def check_id_token(token: Any, keys: Sequence[Jwk], expected: Expected) -> dict[str, Any]:
    """Return the claims of a good token.

    Raises:
        UnknownKey: fetch the keys again and try once more.
        LoginFailed: the token is not what it has to be; `reason` names the check.
        PermissionDenied: it is good, but of a tenant that may not log in here.
    """
    claims = verify_signature(token, keys, expected.config)
    check_issuer(claims, expected.config)
    check_audience(claims, expected.config.client_id)
    check_times(claims, expected.now)
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode("utf-8", "replace"), expected.nonce.encode()
    ):
        raise refused("its nonce is not the one of this login", "nonce")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
        raise refused("it names nobody", "subject")
    return claims


def verify_signature(token: Any, keys: Sequence[Jwk], config: ProviderConfig) -> dict[str, Any]:
    """Return the claims of a token that one of the keys has signed."""
    import jwt

    if not isinstance(token, str) or len(token) > MAX_LENGTH:
        raise refused("there is none", "token")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise refused("it cannot be read", "token") from None
    algorithm = header.get("alg")
    if algorithm not in config.algorithms:
        raise refused("its signature algorithm is not allowed", "algorithm")
    if str(header.get("typ", "JWT")).lower() != "jwt":
        raise refused("it is a token of another kind", "type")
    key = choose_key(keys, header.get("kid"), algorithm)
    decoder = jwt.PyJWT(
        {
            "enforce_minimum_key_length": True,
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
            "verify_aud": False,
            "verify_iss": False,
        }
    )
    try:
        # The bare key, with the one algorithm it was chosen for: a JWK object brings its own.
        public = jwt.PyJWK(key, algorithm).key
        claims = decoder.decode(token, public, algorithms=[algorithm])
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise refused("its signature does not hold", "signature") from None
    return dict(claims)


def choose_key(keys: Sequence[Jwk], kid: Any, algorithm: str) -> Jwk:
    """Return the one key that the token's header means."""
    kty, curve = KEY_OF.get(algorithm, ("RSA", None))
    fitting = [
        key
        for key in keys
        if key["kty"] == kty
        and (curve is None or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
        and (kid is None or key.get("kid") == kid)
    ]
    if len(fitting) != 1:
        raise UnknownKey(
            "The login was refused: the provider signed with a key that it does not publish. "
            "Try again in a minute.",
            reason="key",
        )
    return fitting[0]


def check_issuer(claims: dict[str, Any], config: ProviderConfig) -> None:
    """Compare the issuer exactly; for Entra the tenant has to be on the list first."""
    issuer = config.issuer
    if config.kind == "entra":
        tenant = claims.get("tid")
        if not isinstance(tenant, str) or tenant not in config.tenants:
            raise PermissionDenied(
                f"Your organisation may not log in here through {config.name}. Ask an "
                "administrator of this server.",
                reason="tenant",
            )
        issuer = issuer.replace(TENANT, tenant)
    if claims.get("iss") != issuer:
        raise refused("it is of another issuer", "issuer")


def check_audience(claims: dict[str, Any], client_id: str) -> None:
    """Refuse a token that was made for another client, or for several by another one."""
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or client_id not in audiences:
        raise refused("it was made for another application", "audience")
    if ("azp" in claims or len(audiences) > 1) and claims.get("azp") != client_id:
        raise refused("it was given to another application", "audience")


def check_times(claims: dict[str, Any], now: float) -> None:
    """Check `exp`, `iat` and `nbf`, which must be numbers, with a minute of leeway."""
    expires, issued = number(claims.get("exp")), number(claims.get("iat"))
    if expires is None or issued is None:
        raise refused("it has no times", "time")
    if expires <= now - LEEWAY_SECONDS:
        raise refused("it has expired", "expired")
    if issued > now + LEEWAY_SECONDS or issued < now - MAX_AGE_SECONDS - LEEWAY_SECONDS:
        raise refused("it was not made just now", "time")
    if "nbf" in claims:
        starts = number(claims["nbf"])
        if starts is None or starts > now + LEEWAY_SECONDS:
            raise refused("it is not valid yet", "time")


def number(value: Any) -> float | None:
    """Return a JSON number that is a time, none for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


def refused(why: str, reason: str) -> LoginFailed:
    """Describe a token that is not good."""
    return LoginFailed(
        f"The login was refused: the provider's id_token is not good, {why}. Try again; if it "
        "stays so, tell an administrator of this server.",
        reason=reason,
    )
