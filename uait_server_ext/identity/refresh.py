"""Refresh tokens: families of secrets, of which only the newest can be used, and once.

::

    login ─> token 1 ─use─> token 2 ─use─> token 3 …    one family: one login of one client
               └── used again: the whole family ends, with its access tokens (RFC 9700 4.14.2)

There is no interval in which a used token is forgiven: of any number of parallel uses at most one
wins, and the others end the family. So a client takes turns with itself (`uait_kernel` holds a file
lock), and one that loses an answer logs in again. A family also ends by idleness, at its absolute
limit, and when its user is disabled or their epoch has moved on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, delete, func, select, update

from uait_server_ext.errors import NotFound, Unauthenticated
from uait_server_ext.events.audit import AuditEvent
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, new_id, new_secret

from .credentials import digest
from .tables import refresh_tokens
from .token_models import LoggedInClient, TokenAnswer
from .tokens import LEEWAY_SECONDS, AccessTokens, new_jti

if TYPE_CHECKING:
    from uait_server_ext.events.audit import AuditLog

    from .directory import Directory, Standing

IDLE_SECONDS = 14 * 86_400.0
ABSOLUTE_SECONDS = 90 * 86_400.0
PREFIX = "uaitr"


@dataclass(frozen=True, slots=True)
class Grant:
    """A refresh token that was just made, and what its access token will say."""

    user_id: str
    epoch: int
    scope: frozenset[str]
    authenticated_at: float
    jti: str
    secret: str = field(repr=False)


class RefreshTokens:
    """Begin, rotate and end families of refresh tokens.

    Args:
        idle: seconds after which an unused token ends.
        absolute: seconds after which a family ends however often it is used.
    """

    def __init__(
        self,
        database: Database,
        directory: Directory,
        tokens: AccessTokens,
        audit: AuditLog,
        clock: Clock,
        *,
        idle: float = IDLE_SECONDS,
        absolute: float = ABSOLUTE_SECONDS,
    ) -> None:
        self.database = database
        self.directory = directory
        self.tokens = tokens
        self.audit = audit
        self.clock = clock
        self.idle = idle
        self.absolute = absolute

    def begin(
        self,
        connection: Connection,
        *,
        user_id: str,
        epoch: int,
        scope: frozenset[str],
        client: str,
        authenticated_at: float,
    ) -> Grant:
        """Begin a family in the transaction of the caller."""
        now = self.clock()
        connection.execute(delete(refresh_tokens).where(refresh_tokens.c.family_expires_at < now))
        grant = Grant(user_id, epoch, scope, authenticated_at, new_jti(), new_secret(PREFIX))
        self._insert(
            connection,
            grant,
            family=new_id("fam"),
            client=client,
            family_expires_at=now + self.absolute,
        )
        return grant

    async def answer(self, grant: Grant) -> TokenAnswer:
        """Sign the access token of a grant."""
        access_token = await self.tokens.issue(
            user_id=grant.user_id,
            epoch=grant.epoch,
            scope=grant.scope,
            authenticated_at=grant.authenticated_at,
            jti=grant.jti,
        )
        return TokenAnswer(
            access_token=access_token,
            expires_in=self.tokens.lifetime(),
            refresh_token=grant.secret,
            scope=" ".join(sorted(grant.scope)),
        )

    async def rotate(self, secret: str, address: str | None = None) -> TokenAnswer:
        """Use a refresh token up: return a new access token and the next refresh token.

        Raises:
            Unauthenticated: it is unknown, used, expired or revoked, or its user may not log in.
        """
        # The refusal is returned, not raised: what it revokes and records must be committed.
        grant = await self.database.write(lambda c: self._rotate(c, secret, address))
        if grant is None:
            raise Unauthenticated(
                "This login has ended. Log in again with `uait login`.", error="invalid_grant"
            )
        return await self.answer(grant)

    def _rotate(self, connection: Connection, secret: str, address: str | None) -> Grant | None:
        now = self.clock()
        row = connection.execute(
            select(refresh_tokens).where(refresh_tokens.c.secret_sha256 == digest(secret))
        ).one_or_none()
        if row is None:
            self._record(connection, "refused", None, address, reason="unknown")
            return None
        # One statement decides who wins, also where transactions run beside each other.
        won = connection.execute(
            update(refresh_tokens)
            .where(
                refresh_tokens.c.secret_sha256 == row.secret_sha256,
                refresh_tokens.c.used_at.is_(None),
            )
            .values(used_at=now)
        ).rowcount
        if not won:
            self._end_family(connection, row.family)
            self._record(
                connection, "refused", row.user_id, address, "token.reuse", row.family,
                reason="used-twice",
            )  # fmt: skip
            return None
        standing = self.directory.standing(connection, row.user_id)
        if reason := self._why_not(row.revoked_at, min(row.expires_at, row.family_expires_at),
                                   row.epoch, standing):  # fmt: skip
            self._record(
                connection, "refused", row.user_id, address, target=row.family, reason=reason
            )
            return None
        grant = Grant(
            row.user_id,
            row.epoch,
            frozenset(row.scope.split()),
            row.authenticated_at,
            new_jti(),
            new_secret(PREFIX),
        )
        self._insert(
            connection,
            grant,
            family=row.family,
            client=row.client,
            family_expires_at=row.family_expires_at,
        )
        return grant

    def _why_not(
        self, revoked_at: float | None, until: float, epoch: int, standing: Standing | None
    ) -> str | None:
        """Say why an unused token is not good any more; None where it is."""
        if revoked_at is not None:
            return "revoked"
        if self.clock() >= until:
            return "expired"
        if standing is None or standing.disabled:
            return "account"
        return None if standing.epoch == epoch else "epoch"

    async def end(self, secret: str, address: str | None = None) -> None:
        """End the family of a token, by whoever holds it (RFC 7009); an unknown one is no error."""

        def work(connection: Connection) -> None:
            row = connection.execute(
                select(refresh_tokens.c.family, refresh_tokens.c.user_id).where(
                    refresh_tokens.c.secret_sha256 == digest(secret)
                )
            ).one_or_none()
            if row:
                self._end_family(connection, row.family)
                self._record(connection, "ok", row.user_id, address, "token.end", row.family)

        await self.database.write(work)

    async def end_family(self, user_id: str, family: str, address: str | None = None) -> None:
        """End one login of a person.

        Raises:
            NotFound: this person has no such login.
        """

        def work(connection: Connection) -> None:
            known = connection.scalar(
                select(refresh_tokens.c.family).where(
                    refresh_tokens.c.family == family,
                    refresh_tokens.c.user_id == user_id,
                    refresh_tokens.c.revoked_at.is_(None),
                )
            )
            if known is None:
                raise NotFound("You have no such login. See the list of your logged-in clients.")
            self._end_family(connection, family)
            self._record(connection, "ok", user_id, address, "token.end", family)

        await self.database.write(work)

    def end_all(self, connection: Connection, user_id: str) -> None:
        """End every login of a person, in the transaction of the caller."""
        families = select(refresh_tokens.c.family).where(
            refresh_tokens.c.user_id == user_id, refresh_tokens.c.revoked_at.is_(None)
        )
        for family in connection.scalars(families.distinct()).all():
            self._end_family(connection, family)

    async def list(self, user_id: str, current_jti: str | None = None) -> list[LoggedInClient]:
        """Return the living logins of a person, the one used last first.

        Args:
            current_jti: of the access token of this request, to mark its login.
        """
        now = self.clock()

        def work(connection: Connection) -> list[LoggedInClient]:
            first = (
                select(
                    refresh_tokens.c.family, func.min(refresh_tokens.c.created_at).label("begun")
                )
                .group_by(refresh_tokens.c.family)
                .subquery()
            )
            rows = connection.execute(
                select(refresh_tokens, first.c.begun)
                .join(first, first.c.family == refresh_tokens.c.family)
                .where(
                    refresh_tokens.c.user_id == user_id,
                    refresh_tokens.c.used_at.is_(None),
                    refresh_tokens.c.revoked_at.is_(None),
                    refresh_tokens.c.expires_at > now,
                )
                .order_by(refresh_tokens.c.created_at.desc())
            )
            return [
                LoggedInClient(
                    id=row.family,
                    client=row.client,
                    scope=row.scope.split(),
                    created_at=row.begun,
                    last_used_at=row.created_at,
                    expires_at=row.expires_at,
                    current=row.access_jti == current_jti,
                )
                for row in rows
            ]

        return await self.database.read(work)

    def _insert(
        self,
        connection: Connection,
        grant: Grant,
        *,
        family: str,
        client: str,
        family_expires_at: float,
    ) -> None:
        now = self.clock()
        connection.execute(
            refresh_tokens.insert().values(
                secret_sha256=digest(grant.secret),
                family=family,
                user_id=grant.user_id,
                epoch=grant.epoch,
                scope=" ".join(sorted(grant.scope)),
                client=client,
                authenticated_at=grant.authenticated_at,
                created_at=now,
                expires_at=min(now + self.idle, family_expires_at),
                family_expires_at=family_expires_at,
                access_jti=grant.jti,
            )
        )

    def _end_family(self, connection: Connection, family: str) -> None:
        """Revoke a family's refresh tokens and the access tokens that may still live."""
        now = self.clock()
        connection.execute(
            update(refresh_tokens)
            .where(refresh_tokens.c.family == family, refresh_tokens.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )
        living = select(refresh_tokens.c.access_jti).where(
            refresh_tokens.c.family == family,
            refresh_tokens.c.created_at > now - self.tokens.lifetime() - LEEWAY_SECONDS,
        )
        for jti in connection.scalars(living).all():
            self.tokens.revoke_now(connection, jti)

    def _record(
        self,
        connection: Connection,
        outcome: Literal["ok", "refused"],
        user_id: str | None,
        address: str | None,
        action: str = "token.refresh",
        target: str | None = None,
        **detail: str,
    ) -> None:
        self.audit.append(
            connection,
            AuditEvent(
                action=action,
                outcome=outcome,
                principal=user_id,
                kind="user",
                address=address,
                target=target,
                detail=dict(detail),
            ),
        )
