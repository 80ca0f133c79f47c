"""What an administrator writes about an identity provider, and where its client secret is.

Secrets never stand in the configuration: `client_secret_ref` names where one is read, once, at
start. A variable of the environment is removed when it was read, so that no kernel inherits it.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uait_server_ext.errors import InvalidInput
from uait_server_ext.identity.principal import ROLES

Kind = Literal["oidc", "google", "github", "entra"]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]

TENANT = "{tenantid}"
SEALED = "sealed"
ISSUERS: dict[Kind, str] = {
    "google": "https://accounts.google.com",
    "github": "https://github.com/login/oauth",
    "entra": f"https://login.microsoftonline.com/{TENANT}/v2.0",
}
SCOPES: dict[Kind, tuple[str, ...]] = {
    "oidc": ("openid", "profile", "email"),
    "google": ("openid", "profile", "email"),
    "entra": ("openid", "profile", "email"),
    "github": ("read:user", "user:email"),
}
GUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class ProviderConfig(BaseModel):
    """One identity provider.

    Attributes:
        id: part of the callback address `<base>/uait/v1/login/oidc/<id>/callback`.
        issuer: exactly as the provider's discovery document writes it; preset but for `oidc`.
        client_secret_ref: `env:NAME`, `file:/path`, or `sealed` for the sealed value `oidc:<id>`;
            none for a public client.
        tenants: Entra tenants (GUID) whose people may log in; needed for Entra.
        email_domains: a new user's verified e-mail must be in one of them.
        auto_create: the role of a user made at the first login; none: unknown people are refused.
        allow_insecure: allow plain http to this machine's own addresses; for tests.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    kind: Kind = "oidc"
    issuer: Annotated[str, Field(max_length=200)] = ""
    client_id: Annotated[str, Field(min_length=1, max_length=300)]
    client_secret_ref: Annotated[str, Field(pattern=r"^(env:\w+|file:.+|sealed)$")] | None = None
    scopes: tuple[Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$")], ...] = ()
    tenants: tuple[Annotated[str, Field(pattern=GUID)], ...] = ()
    email_domains: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]+\.[a-z0-9-]+$")], ...] = ()
    auto_create: str | None = None
    algorithms: tuple[Algorithm, ...] = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
    allow_insecure: bool = False

    @model_validator(mode="before")
    @classmethod
    def fill_presets(cls, values: Any) -> Any:
        """Put in what the kind says where the administrator wrote nothing."""
        if not isinstance(values, dict):
            return values
        kind = values.get("kind", "oidc")
        tenants: Any = values.get("tenants") or ()
        issuer = values.get("issuer") or ISSUERS.get(kind, "")
        if kind == "entra" and isinstance(issuer, str) and len(tenants) == 1:
            issuer = issuer.replace(TENANT, str(tenants[0]))
        return {
            **values,
            "issuer": issuer,
            "scopes": values.get("scopes") or SCOPES.get(kind, ()),
        }

    @model_validator(mode="after")
    def check_together(self) -> Self:
        """Refuse what no field alone can see."""
        check_url(self.issuer, "issuer", allow_insecure=self.allow_insecure)
        if self.kind == "entra" and not self.tenants:
            raise ValueError("entra needs `tenants`: the tenants whose people may log in")
        if self.kind != "entra" and (self.tenants or TENANT in self.issuer):
            raise ValueError("only entra has tenants")
        if self.kind != "github" and "openid" not in self.scopes:
            raise ValueError("scopes must hold `openid`")
        if self.auto_create is not None:
            if self.auto_create not in ROLES or self.auto_create == "admin":
                offered = ", ".join(role for role in ROLES if role != "admin")
                raise ValueError(f"auto_create takes one of {offered}; admins are made by admins")
            if self.kind in ("google", "github") and not self.email_domains:
                raise ValueError(
                    f"auto_create with {self.kind} needs `email_domains`: anybody can get an "
                    "account there"
                )
        return self

    def owns(self, issuer: str) -> bool:
        """Tell whether an external account's issuer is this provider."""
        if TENANT not in self.issuer:
            return issuer == self.issuer
        return issuer in {self.issuer.replace(TENANT, tenant) for tenant in self.tenants}


def check_url(url: str, what: str, *, allow_insecure: bool) -> str:
    """Return a URL that may be talked to: https, or http on this machine where that is allowed.

    Raises:
        ValueError: anything else, and a URL that carries a user name, query or fragment.
    """
    parts = urlsplit(url)
    local = allow_insecure and parts.scheme == "http" and parts.hostname in LOOPBACK
    if not parts.hostname or not (parts.scheme == "https" or local):
        raise ValueError(f"{what} must be an https address")
    if parts.username is not None or parts.fragment or "\\" in url or not url.isascii():
        raise ValueError(f"{what} is not a plain address")
    return url


def read_providers(entries: Iterable[dict[str, Any]]) -> tuple[ProviderConfig, ...]:
    """Read the configuration.

    Raises:
        InvalidInput: names the provider and the field that is wrong.
    """
    providers: list[ProviderConfig] = []
    for number, entry in enumerate(entries):
        name = entry.get("id", f"number {number + 1}") if isinstance(entry, dict) else number + 1
        try:
            providers.append(ProviderConfig.model_validate(entry))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(
                f"The identity provider {name} is not set up right: {place}: {first['msg']}. "
                "Correct `UaitApp.oidc_providers` and start again."
            ) from None
    for field in ("id", "issuer"):
        values = [getattr(provider, field) for provider in providers]
        if twice := {value for value in values if values.count(value) > 1}:
            raise InvalidInput(
                f"Two identity providers have the {field} {min(twice)}. Keep one of them in "
                "`UaitApp.oidc_providers`."
            )
    return tuple(providers)


def read_client_secrets(
    providers: Iterable[ProviderConfig], environment: MutableMapping[str, str]
) -> dict[str, str]:
    """Return the client secrets that files and variables hold, by provider; blocks.

    Variables are removed from the environment.

    Raises:
        InvalidInput: a named file or variable is not there.
    """
    found: dict[str, str] = {}
    used: set[str] = set()
    for provider in providers:
        where, _, name = (provider.client_secret_ref or "").partition(":")
        secret: str | None = None
        if where == "env":
            secret = environment.get(name)
            used.add(name)
        elif where == "file":
            try:
                secret = Path(name).expanduser().read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                secret = None
        else:
            continue
        if not secret or not secret.strip():
            raise InvalidInput(
                f"The client secret of the identity provider {provider.id} is not at "
                f"{provider.client_secret_ref}. Put it there, or correct `client_secret_ref`."
            )
        found[provider.id] = secret.strip()
    for name in used:
        environment.pop(name, None)
    return found
