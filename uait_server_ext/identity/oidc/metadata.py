"""Check what a provider publishes about itself: its discovery document and its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uait_server_ext.errors import LoginFailed

from .configuration import TENANT, ProviderConfig, check_url

MAX_KEYS = 100
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

Jwk = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metadata:
    """Where a provider does what.

    Attributes:
        sends_issuer: its callbacks carry `iss` (RFC 9207), so one without is refused.
        token_auth: how the client proves itself at the token endpoint.
    """

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str | None = None
    userinfo_endpoint: str | None = None
    sends_issuer: bool = False
    token_auth: str = "client_secret_basic"  # noqa: S105 - the name of a method


def discovery_url(config: ProviderConfig) -> str:
    """Return the address of the discovery document (OpenID Connect Discovery 1.0, section 4)."""
    # Entra has one document for several tenants; its issuer is then the template.
    issuer = config.issuer.replace(TENANT, "organizations").rstrip("/")
    return f"{issuer}/.well-known/openid-configuration"


def github_metadata(config: ProviderConfig) -> Metadata:
    """Return GitHub's endpoints: it has OAuth 2.0, not OpenID Connect."""
    return Metadata(
        authorization_endpoint=f"{config.issuer}/authorize",
        token_endpoint=f"{config.issuer}/access_token",
        token_auth="client_secret_post",  # noqa: S106 - the name of a method
    )


def read_metadata(config: ProviderConfig, document: Any) -> Metadata:
    """Check a discovery document.

    Raises:
        LoginFailed: it is of another issuer, or lacks what a safe login needs.
    """
    if not isinstance(document, dict) or document.get("issuer") != config.issuer:
        raise wrong(config, "the discovery document names another issuer", "issuer")
    endpoints: dict[str, str | None] = {}
    for name, needed in (
        ("authorization_endpoint", True),
        ("token_endpoint", True),
        ("jwks_uri", True),
        ("userinfo_endpoint", False),
    ):
        url = document.get(name)
        if url is None and not needed:
            endpoints[name] = None
            continue
        try:
            endpoints[name] = check_url(str(url), name, allow_insecure=config.allow_insecure)
        except ValueError as error:
            raise wrong(config, f"its discovery document is not usable: {error}") from None
    challenges = document.get("code_challenge_methods_supported")
    if isinstance(challenges, list) and "S256" not in challenges:
        raise wrong(config, "it does not take PKCE with S256")
    methods = document.get("token_endpoint_auth_methods_supported")
    basic = not isinstance(methods, list) or "client_secret_basic" in methods
    return Metadata(
        authorization_endpoint=str(endpoints["authorization_endpoint"]),
        token_endpoint=str(endpoints["token_endpoint"]),
        jwks_uri=endpoints["jwks_uri"],
        userinfo_endpoint=endpoints["userinfo_endpoint"],
        sends_issuer=document.get("authorization_response_iss_parameter_supported") is True,
        token_auth="client_secret_basic" if basic else "client_secret_post",
    )


def read_keys(config: ProviderConfig, document: Any) -> tuple[Jwk, ...]:
    """Return the public signature keys of a key set (RFC 7517), without the others.

    A shared key (`oct`) never counts: whoever reads the set could sign with it.

    Raises:
        LoginFailed: there is none.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    keys = tuple(
        entry
        for entry in (entries if isinstance(entries, list) else [])[:MAX_KEYS]
        if isinstance(entry, dict)
        and entry.get("kty") in ("RSA", "EC", "OKP")
        and entry.get("use", "sig") == "sig"
        and not PRIVATE_MEMBERS & entry.keys()
    )
    if not keys:
        raise wrong(config, "it publishes no key that a signature can be checked with", "keys")
    return keys


def wrong(config: ProviderConfig, what: str, reason: str = "provider") -> LoginFailed:
    """Describe a provider whose answers cannot be trusted."""
    return LoginFailed(
        f"{config.name} cannot be used to log in: {what}. Use another way to log in, and tell an "
        "administrator of this server.",
        reason=reason,
    )
