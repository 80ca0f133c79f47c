"""Who a provider says it is: an issuer and a subject; an e-mail only where it is verified.

The subject is what the provider never gives to another person: GitHub's numeric id and not its
login, Entra's object in its tenant and not the e-mail (which tenants can set as they like).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uait_server_ext.errors import LoginFailed

from .configuration import TENANT, ProviderConfig
from .id_token import MAX_SUBJECT

MAX_EMAIL = 254


@dataclass(frozen=True, slots=True)
class ExternalAccount:
    """An account at a provider.

    Attributes:
        email: verified by the provider, in lower case; none otherwise.
        username: what the person is called there; a proposal, nothing is decided by it.
        label: what the person sees in the list of linked accounts.
    """

    issuer: str
    subject: str
    email: str | None
    username: str
    display_name: str
    label: str


def from_claims(config: ProviderConfig, claims: Mapping[str, Any]) -> ExternalAccount:
    """Return the account behind the checked claims of an id_token.

    Raises:
        LoginFailed: Entra left the object id out.
    """
    issuer, subject = str(claims["iss"]), str(claims["sub"])
    verified = claims.get("email_verified") is True
    if config.kind == "entra":
        tenant, oid = text(claims.get("tid")), text(claims.get("oid"))
        if not tenant or not oid:
            raise LoginFailed(
                f"{config.name} did not say which account it is. Tell an administrator of this "
                "server: the scope `profile` is missing.",
                reason="subject",
            )
        issuer, subject = config.issuer.replace(TENANT, tenant), f"{tenant}/{oid}"
        # Entra's own sign that the e-mail's domain belongs to the tenant.
        verified = claims.get("xms_edov") in (True, 1, "1", "true")
    email = mailbox(claims.get("email")) if verified else None
    handle = text(claims.get("preferred_username")) or text(claims.get("email"))
    name = text(claims.get("name"))
    return ExternalAccount(
        issuer=issuer,
        subject=subject[:MAX_SUBJECT],
        email=email,
        username=handle.partition("@")[0],
        display_name=name or handle.partition("@")[0],
        label=email or handle or name or subject,
    )


def from_github(config: ProviderConfig, user: Any, emails: Any) -> ExternalAccount:
    """Return the account behind GitHub's answers to `/user` and `/user/emails`.

    Raises:
        LoginFailed: the answer has no id.
    """
    number = user.get("id") if isinstance(user, dict) else None
    if isinstance(number, bool) or not isinstance(number, int) or number <= 0:
        raise LoginFailed(
            f"{config.name} did not say which account it is. Try again.", reason="subject"
        )
    verified = [
        entry
        for entry in (emails if isinstance(emails, list) else [])
        if isinstance(entry, dict) and entry.get("verified") is True
    ]
    verified.sort(key=lambda entry: entry.get("primary") is not True)
    login = text(user.get("login"))
    return ExternalAccount(
        issuer=config.issuer,
        subject=str(number),
        email=mailbox(verified[0].get("email")) if verified else None,
        username=login,
        display_name=text(user.get("name")) or login,
        label=login or str(number),
    )


def mailbox(value: Any) -> str | None:
    """Return an e-mail address in lower case, none for what is not one."""
    if not isinstance(value, str) or len(value) > MAX_EMAIL or not value.isascii():
        return None
    local, at, domain = value.rpartition("@")
    if not at or not local or not domain or any(c <= " " for c in value):
        return None
    return value.lower()


def text(value: Any) -> str:
    """Return at most 128 printable characters of a claim, empty for what is no text."""
    if not isinstance(value, str):
        return ""
    return "".join(c for c in value[:128] if c.isprintable()).strip()


def domain_allowed(config: ProviderConfig, email: str | None) -> bool:
    """Tell whether a new user with this verified e-mail may be made."""
    if not config.email_domains:
        return True
    return email is not None and email.rpartition("@")[2] in config.email_domains
