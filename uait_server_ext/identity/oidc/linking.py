"""Which external account is whose. Linked by proof of both accounts only, never by an e-mail."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from uait_server_ext.errors import Conflict, InvalidInput, PermissionDenied
from uait_server_ext.identity import names
from uait_server_ext.identity.principal import ROLES, Principal
from uait_server_ext.identity.tables import external_accounts, passkeys, users
from uait_server_ext.storage.ids import new_secret

from .claims import ExternalAccount, domain_allowed
from .configuration import ProviderConfig

if TYPE_CHECKING:
    from uait_server_ext.identity.directory import Directory

NAME_CHARACTERS = 40
NAMES_TRIED = 100


@dataclass(frozen=True, slots=True)
class Linked:
    """An external account of a user."""

    issuer: str
    label: str
    linked_at: float


def owner(connection: Connection, account: ExternalAccount) -> str | None:
    """Return the id of the user to whom an external account is linked."""
    found: str | None = connection.scalar(
        select(external_accounts.c.user_id).where(
            external_accounts.c.issuer == account.issuer,
            external_accounts.c.subject == account.subject,
        )
    )
    return found


def link(connection: Connection, account: ExternalAccount, user_id: str, now: float) -> None:
    """Link an external account to a user.

    Raises:
        Conflict: it is another user's.
    """
    before = owner(connection, account)
    if before == user_id:
        return
    try:
        if before is not None:
            raise Conflict(
                f"The account {account.label} is linked to another user of this server. Unlink it "
                "there first.",
                reason="linked-elsewhere",
            )
        connection.execute(
            insert(external_accounts).values(
                issuer=account.issuer,
                subject=account.subject,
                user_id=user_id,
                label=account.label[:200],
                linked_at=now,
            )
        )
    except IntegrityError:
        raise Conflict("This account was linked just now. Try again.", reason="again") from None


def linked(connection: Connection, user_id: str) -> list[Linked]:
    """Return a user's external accounts, the oldest first."""
    rows = connection.execute(
        select(external_accounts)
        .where(external_accounts.c.user_id == user_id)
        .order_by(external_accounts.c.linked_at)
    )
    return [Linked(row.issuer, row.label, row.linked_at) for row in rows]


def unlink(connection: Connection, user_id: str, issuers: set[str], *, others: bool) -> None:
    """Take a user's accounts of these issuers away.

    `others` says whether the user has an account at another provider that is configured.

    Raises:
        Conflict: the user could not log in any more.
    """
    mine = external_accounts.c.user_id == user_id
    has_password = connection.scalar(
        select(users.c.password_hash.is_not(None)).where(users.c.id == user_id)
    )
    has_passkey = connection.scalar(
        select(func.count()).select_from(passkeys).where(passkeys.c.user_id == user_id)
    )
    if not (others or has_password or has_passkey):
        raise Conflict(
            "This account is your only way to log in. Add a passkey or another account first."
        )
    connection.execute(
        delete(external_accounts).where(mine, external_accounts.c.issuer.in_(issuers))
    )


def create_user(
    connection: Connection,
    directory: Directory,
    config: ProviderConfig,
    account: ExternalAccount,
    now: float,
) -> str:
    """Make the user of an external account that nobody has, where the configuration allows it.

    Raises:
        PermissionDenied: it does not, or somebody here already has that e-mail.
    """
    role = config.auto_create
    if role is None or not domain_allowed(config, account.email) or directory.empty(connection):
        raise PermissionDenied(
            f"No user of this server has this {config.name} account. Ask an administrator for an "
            "invitation; if you have a user name here, log in with it and link the account.",
            reason="unknown-account",
        )
    if account.email and connection.scalar(
        select(func.count()).select_from(users).where(func.lower(users.c.email) == account.email)
    ):
        raise PermissionDenied(
            "A user of this server has this e-mail address. If it is you, log in as before and "
            f"link your {config.name} account on your account page.",
            reason="email-in-use",
        )
    user_id = directory.create(
        connection,
        Principal(
            id=f"oidc:{config.id}", name=config.name, kind="service", permissions=ROLES[role]
        ),
        username=free_name(connection, directory, account.username),
        display_name=shown_name(account.display_name),
        roles=(role,),
        email=account.email,
        email_verified=account.email is not None,
    )
    link(connection, account, user_id, now)
    return user_id


def free_name(connection: Connection, directory: Directory, proposal: str) -> str:
    """Return a user name that nobody has, like the proposal as far as that goes."""
    kept = [
        c
        for c in unicodedata.normalize("NFKC", proposal)
        if c in names.PUNCTUATION or unicodedata.category(c)[0] in "LN"
    ]
    base = "".join(kept).lstrip("".join(names.PUNCTUATION))[:NAME_CHARACTERS]
    if names.username_key(base) is None:
        base = "user"
    for number in range(1, NAMES_TRIED):
        candidate = base if number == 1 else f"{base}{number}"
        if directory.credentials(connection, candidate) is None:
            return candidate
    return f"{base}-{new_secret('u')[2:12]}"


def shown_name(proposal: str) -> str | None:
    """Return a displayed name where the proposal is one."""
    try:
        return names.display_name(proposal)
    except InvalidInput:
        return None
