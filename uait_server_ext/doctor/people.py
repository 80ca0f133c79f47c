"""Controls on people, keys and the audit log: what the database says."""

from __future__ import annotations

from sqlalchemy import Connection, func, or_, select

from uait_server_ext.identity.directory import effective_roles
from uait_server_ext.identity.tables import api_keys, links, signing_keys, users
from uait_server_ext.storage.ids import now

from .report import Control, Judgement, NotApplicable, Subject

SIGNING_KEY_DAYS = 100.0
API_KEY_DAYS = 366.0
DAY = 86_400.0


async def audit_log_is_whole(subject: Subject) -> Judgement:
    """No event was changed, removed or cut off."""
    report = await subject.foundation.audit.verify()
    return report.intact, report.detail


async def administrators_have_second_factors(subject: Subject) -> Judgement:
    """A stolen password alone must not govern the server."""
    identity = subject.identity

    def read(connection: Connection) -> tuple[int, list[str]]:
        active = connection.execute(
            select(users.c.id, users.c.username).where(users.c.disabled_at.is_(None))
        ).all()
        admins = [row for row in active if "admin" in effective_roles(connection, row.id)]
        return len(admins), [
            row.username for row in admins if not identity.factors.methods_of(connection, row.id)
        ]

    number, without = await subject.foundation.database.read(read)
    if not number:
        return False, "there is no administrator yet: finish the setup, or anyone with its link may"
    return not without, (
        f"without one: {', '.join(without)}" if without else f"all {number} administrators have one"
    )


async def signing_keys_are_young(subject: Subject) -> Judgement:
    """The key that signs access tokens changes by itself; none verifies without an end."""

    def read(connection: Connection) -> tuple[float | None, int]:
        signer = connection.scalar(
            select(func.max(signing_keys.c.created_at)).where(signing_keys.c.retired_at.is_(None))
        )
        endless = connection.scalar(
            select(func.count())
            .select_from(signing_keys)
            .where(signing_keys.c.retired_at.is_not(None), signing_keys.c.expires_at.is_(None))
        )
        return signer, endless or 0

    signer, endless = await subject.foundation.database.read(read)
    if signer is None:
        raise NotApplicable("no access token was issued yet")
    days = (now() - signer) / DAY
    return days <= SIGNING_KEY_DAYS and not endless, (
        f"the signing key is {days:.0f} days old; {endless} retired keys without an end"
    )


async def api_keys_expire(subject: Subject) -> Judgement:
    """A forgotten key is a key that somebody finds."""

    def read(connection: Connection) -> list[str]:
        far = now() + API_KEY_DAYS * DAY
        return list(
            connection.scalars(
                select(api_keys.c.prefix).where(
                    api_keys.c.revoked_at.is_(None),
                    or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > far),
                )
            )
        )

    endless = await subject.foundation.database.read(read)
    return not endless, (
        f"never, or after more than a year: {', '.join(endless)}" if endless else "all do"
    )


async def links_expire(subject: Subject) -> Judgement:
    """One-time links that wait to be used have an end within a week."""

    def read(connection: Connection) -> int:
        far = now() + 7 * DAY + 60
        return (
            connection.scalar(
                select(func.count())
                .select_from(links)
                .where(links.c.used_at.is_(None), links.c.expires_at > far)
            )
            or 0
        )

    lasting = await subject.foundation.database.read(read)
    return not lasting, f"{lasting} links wait for more than a week"


CONTROLS = (
    Control("audit-log", "recomputed the hash chain and compared the anchor", audit_log_is_whole),
    Control(
        "admin-second-factor",
        "factors of every active administrator",
        administrators_have_second_factors,
    ),
    Control("signing-keys", "ages in the key ring", signing_keys_are_young),
    Control("api-keys-expire", "expiry of every living API key", api_keys_expire),
    Control("links-expire", "expiry of unused one-time links", links_expire),
)
