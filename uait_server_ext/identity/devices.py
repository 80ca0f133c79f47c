"""Logging a client in from a browser that is logged in already (RFC 8628, device flow).

::

    client: begin ──> device code (secret) + user code (shown)
    person: types the user code on the device page, sees who asks for what, approves or denies
    client: poll … authorization_pending … ──> tokens, once

The person must have proved who they are within minutes, in person: a token or key approves nothing,
so that a stolen one cannot make itself lasting company. User codes are guessed at 20^8, live ten
minutes, and a person may mistype a few.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Row, delete, func, select, update

from uait_server_ext.errors import (
    AccessDenied,
    AuthorizationPending,
    Busy,
    CodeExpired,
    GrantRefused,
    InvalidInput,
    NotFound,
    PermissionDenied,
    SlowDown,
    UaitError,
)
from uait_server_ext.events.audit import AuditEvent
from uait_server_ext.storage.database import Database
from uait_server_ext.storage.ids import Clock, new_secret

from .credentials import digest
from .principal import PERMISSIONS, Principal
from .refresh import Grant, RefreshTokens
from .tables import attempts, device_codes
from .token_models import DEVICE_INTERVAL_SECONDS, DEVICE_SECONDS, DeviceRequest, TokenAnswer
from .tokens import JTI_PREFIX

if TYPE_CHECKING:
    from uait_server_ext.events.audit import AuditLog

    from .directory import Directory

SLOW_DOWN_SECONDS = 5  # RFC 8628 section 3.5
MAX_WAITING = 1000
MAX_WAITING_OF_ADDRESS = 20
MAX_WRONG_CODES = 5
WRONG_CODES_SECONDS = 900.0
PREFIX = "uaitd"
# Consonants without Y: no words arise and nothing is mistaken for a digit (RFC 8628 section 6.1).
ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
CODE_LENGTH = 8
DEFAULT_SCOPE = frozenset(
    {
        "system:read",
        "models:read",
        "models:run",
        "knowledge:read",
        "knowledge:write",
        "account:read",
    }
)
"""What a client gets that asks for nothing in particular."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A device code for the client and a user code for the person."""

    device_code: str = field(repr=False)
    user_code: str

    @property
    def shown(self) -> str:
        """The user code as people read it: `BCDF-GHJK`."""
        return f"{self.user_code[: CODE_LENGTH // 2]}-{self.user_code[CODE_LENGTH // 2 :]}"


class Devices:
    """Begin, decide and finish device logins."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        refresh: RefreshTokens,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self.database = database
        self.directory = directory
        self.refresh = refresh
        self.audit = audit
        self.clock = clock

    async def begin(self, client: str, scope: str | None, address: str) -> Begun:
        """Begin a login.

        Args:
            client: what it calls itself, shown to the person.
            scope: permissions separated by spaces; none: `DEFAULT_SCOPE`.

        Raises:
            InvalidInput: an unknown permission.
            Busy: too many logins wait.
        """
        wanted = frozenset(scope.split()) if scope and scope.strip() else DEFAULT_SCOPE
        if unknown := wanted - PERMISSIONS.keys():
            raise InvalidInput(
                f"{len(unknown)} of the permissions asked for are not known. See the list in the "
                "documentation.",
                error="invalid_scope",
            )
        begun = Begun(new_secret(PREFIX), new_user_code())

        def work(connection: Connection) -> None:
            now = self.clock()
            connection.execute(delete(device_codes).where(device_codes.c.expires_at <= now))
            waiting = select(func.count()).select_from(device_codes)
            here = waiting.where(device_codes.c.address == address)
            if (connection.scalar(waiting) or 0) >= MAX_WAITING or (
                connection.scalar(here) or 0
            ) >= MAX_WAITING_OF_ADDRESS:
                raise Busy(
                    "Too many logins wait for their person. Try again in some minutes.",
                    retry_after=60,
                )
            connection.execute(
                device_codes.insert().values(
                    device_sha256=digest(begun.device_code),
                    user_code=begun.user_code,
                    client=client,
                    scope=" ".join(sorted(wanted)),
                    address=address,
                    expires_at=now + DEVICE_SECONDS,
                    interval_seconds=DEVICE_INTERVAL_SECONDS,
                )
            )

        await self.database.write(work)
        return begun

    async def look(self, principal: Principal, user_code: str) -> DeviceRequest:
        """Tell who asks under a user code, before the person decides.

        Raises:
            PermissionDenied: the caller is not there in person.
            NotFound: no login waits under this code.
            Busy: too many wrong codes.
        """
        in_person(principal)

        def work(connection: Connection) -> DeviceRequest | UaitError:
            row = self._waiting(connection, principal, user_code)
            if isinstance(row, UaitError):
                return row
            return DeviceRequest(
                client=row.client,
                scope=sorted(principal.permissions & set(row.scope.split())),
                address=row.address,
                expires_in=int(row.expires_at - self.clock()),
            )

        found = await self.database.write(work)
        if isinstance(found, UaitError):
            raise found
        return found

    async def decide(
        self,
        principal: Principal,
        user_code: str,
        decision: Literal["approve", "deny"],
        address: str | None = None,
    ) -> None:
        """Approve or deny the login under a user code, as the person who is logged in.

        Raises:
            PermissionDenied: the caller is not there in person, or holds nothing of what is asked.
            NotFound: no login waits under this code.
            Busy: too many wrong codes.
        """
        in_person(principal)
        # Refusals are returned, so that the count of wrong codes and the audit are committed.
        refusal = await self.database.write(
            lambda c: self._decide(c, principal, user_code, decision, address)
        )
        if refusal:
            raise refusal

    def _decide(
        self,
        connection: Connection,
        principal: Principal,
        user_code: str,
        decision: Literal["approve", "deny"],
        address: str | None,
    ) -> UaitError | None:
        row = self._waiting(connection, principal, user_code)
        if isinstance(row, UaitError):
            self._record(connection, "refused", f"device.{decision}", principal.id, address)
            return row
        standing = self.directory.standing(connection, principal.id)
        scope = principal.permissions & set(row.scope.split())
        if standing is None or standing.disabled or (decision == "approve" and not scope):
            return PermissionDenied("You hold none of the permissions that this client asks for.")
        connection.execute(
            update(device_codes)
            .where(device_codes.c.device_sha256 == row.device_sha256)
            .values(
                decision="approved" if decision == "approve" else "denied",
                user_id=principal.id,
                scope=" ".join(sorted(scope)),
                epoch=standing.epoch,
                authenticated_at=principal.authenticated_at,
            )
        )
        self._record(connection, "ok", f"device.{decision}", principal.id, address, row.client)
        return None

    def _waiting(
        self, connection: Connection, principal: Principal, user_code: str
    ) -> Row[Any] | UaitError:
        """Find the undecided login under a user code, counting wrong codes against the person."""
        now = self.clock()
        subject = f"device:{principal.id}"
        wrong = select(func.count()).where(
            attempts.c.subject == subject, attempts.c.at > now - WRONG_CODES_SECONDS
        )
        if (connection.scalar(wrong) or 0) >= MAX_WRONG_CODES:
            return Busy(
                "Too many wrong codes. Try again in a quarter of an hour.",
                retry_after=int(WRONG_CODES_SECONDS),
            )
        row = connection.execute(
            select(device_codes).where(
                device_codes.c.user_code == normal(user_code),
                device_codes.c.decision.is_(None),
                device_codes.c.expires_at > now,
            )
        ).one_or_none()
        if row is None:
            connection.execute(attempts.insert().values(subject=subject, at=now))
            return NotFound(
                "No login waits under this code. Compare it with what your client shows; it is "
                "good for ten minutes."
            )
        return row

    async def poll(self, device_code: str, address: str | None = None) -> TokenAnswer:
        """Return the tokens when the person has approved; a code brings them once.

        Raises:
            AuthorizationPending, SlowDown, CodeExpired, AccessDenied, GrantRefused.
        """
        outcome = await self.database.write(lambda c: self._poll(c, device_code, address))
        if isinstance(outcome, GrantRefused):
            raise outcome
        return await self.refresh.answer(outcome)

    def _poll(
        self, connection: Connection, device_code: str, address: str | None
    ) -> Grant | GrantRefused:
        now = self.clock()
        this = device_codes.c.device_sha256 == digest(device_code)
        row = connection.execute(select(device_codes).where(this).with_for_update()).one_or_none()
        if row is None:
            return GrantRefused("This device code is not known or was used. Begin anew.")
        if row.expires_at <= now:
            connection.execute(delete(device_codes).where(this))
            return CodeExpired("Nobody approved this login in time. Begin anew.")
        if row.last_poll_at is not None and now - row.last_poll_at < row.interval_seconds:
            interval = row.interval_seconds + SLOW_DOWN_SECONDS
            connection.execute(
                update(device_codes).where(this).values(last_poll_at=now, interval_seconds=interval)
            )
            return SlowDown(f"Ask every {interval} seconds.", interval=interval)
        if row.decision is None:
            connection.execute(update(device_codes).where(this).values(last_poll_at=now))
            return AuthorizationPending("Nobody has approved this login yet. Ask again.")
        connection.execute(delete(device_codes).where(this))
        if row.decision == "denied":
            return AccessDenied("The login was denied.")
        standing = self.directory.standing(connection, row.user_id)
        if standing is None or standing.disabled or standing.epoch != row.epoch:
            return AccessDenied("The account of the person who approved has changed. Begin anew.")
        self._record(connection, "ok", "login.device", row.user_id, address, row.client)
        return self.refresh.begin(
            connection,
            user_id=row.user_id,
            epoch=row.epoch,
            scope=frozenset(row.scope.split()),
            client=row.client,
            authenticated_at=row.authenticated_at,
        )

    def _record(
        self,
        connection: Connection,
        outcome: Literal["ok", "refused"],
        action: str,
        user_id: str,
        address: str | None,
        client: str | None = None,
    ) -> None:
        self.audit.append(
            connection,
            AuditEvent(
                action=action,
                outcome=outcome,
                principal=user_id,
                kind="user",
                address=address,
                target=client,
            ),
        )


def in_person(principal: Principal) -> None:
    """Refuse what is not a person in a browser session.

    Raises:
        PermissionDenied: the caller is a token, a key or a kernel.
    """
    if (
        principal.kind != "user"
        or principal.credential is None
        or principal.credential.startswith(f"{JTI_PREFIX}_")
    ):
        raise PermissionDenied("Only a person who is logged in with a browser can do this.")


def new_user_code() -> str:
    """Return a fresh user code, without the dash that people see."""
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))


def normal(typed: str) -> str:
    """Read a user code as people type it: any case, any dashes and spaces."""
    return re.sub(r"[\s\-‐-―]", "", typed[:64]).upper()
