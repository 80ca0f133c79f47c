"""Second factors of people: what they have, when it is required, and the checks that count.

A wrong code counts towards a lock-out of the user's codes; passkeys cannot be guessed and do not.
Whatever changes a person's factors ends their sessions and tokens (epoch) and holds at once
(generation); the browser that asked for it is given a new session by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection

from uait_server_ext.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, now

from .directory import raise_epoch
from .factor_models import FactorOverview, TotpEnrolment
from .passkeys import forget_passkey, passkeys_of
from .principal import ROLES
from .recovery import RecoveryCodes
from .totp import Seals, Totp

if TYPE_CHECKING:
    from .directory import Standing
    from .throttle import Throttle


class Factors:
    """The second factors of all people."""

    def __init__(
        self,
        database: Database,
        sealer: Seals,
        audit: AuditLog,
        throttle: Throttle,
        clock: Clock = now,
        required_roles: Iterable[str] = (),
    ) -> None:
        self.database = database
        self.audit = audit
        self.throttle = throttle
        self.totp = Totp(sealer, clock)
        self.recovery = RecoveryCodes(clock)
        self.required_roles = frozenset(required_roles)
        if unknown := self.required_roles - ROLES.keys():
            # A misspelt role would quietly require nothing of anybody.
            raise InvalidInput(
                f"second_factor_required_roles names {', '.join(sorted(unknown))}, which is no "
                f"role. Roles: {', '.join(ROLES)}."
            )

    def required(self, standing: Standing) -> bool:
        """Tell whether a role of the person makes a second factor necessary."""
        return not self.required_roles.isdisjoint(standing.roles)

    async def methods(self, user_id: str) -> tuple[str, ...]:
        """Return the ways in which the user can give a second factor; empty where none is set."""
        return await self.database.read(lambda connection: self.methods_of(connection, user_id))

    def methods_of(self, connection: Connection, user_id: str) -> tuple[str, ...]:
        """Return the ways of a user within a transaction."""
        enrolled = [
            *(["totp"] if self.totp.devices(connection, user_id) else []),
            *(["passkey"] if passkeys_of(connection, user_id) else []),
        ]
        if enrolled and self.recovery.left(connection, user_id):
            enrolled.append("recovery")
        return tuple(enrolled)

    async def overview(self, standing: Standing) -> FactorOverview:
        """Return what a person has enrolled."""
        return await self.database.read(
            lambda connection: FactorOverview(
                totp=self.totp.devices(connection, standing.user_id),
                passkeys=passkeys_of(connection, standing.user_id),
                recovery_codes_left=self.recovery.left(connection, standing.user_id),
                required=self.required(standing),
            )
        )

    async def check_code(self, user_id: str, code: str, address: str | None = None) -> None:
        """Take a code from the user's authenticator app, once.

        Raises:
            Unauthenticated: the code is wrong, too old or used.
            TooManyAttempts: too many wrong codes; `retry_after` says when to come back.
        """
        await self._check(
            "totp", user_id, address, lambda connection: self.totp.check(connection, user_id, code)
        )

    async def check_recovery(self, user_id: str, code: str, address: str | None = None) -> None:
        """Take one of the user's recovery codes, once.

        Raises:
            Unauthenticated: the code is wrong or used.
            TooManyAttempts: too many wrong codes; `retry_after` says when to come back.
        """
        await self._check(
            "recovery",
            user_id,
            address,
            lambda connection: self.recovery.use(connection, user_id, code),
        )

    async def begin_totp(self, user_id: str, username: str, name: str) -> TotpEnrolment:
        """Begin with an authenticator app; it counts after `confirm_totp`."""
        return await self.database.write(
            lambda connection: self.totp.enrol(connection, user_id, username, name)
        )

    async def confirm_totp(
        self, user_id: str, device_id: str, code: str, address: str | None = None
    ) -> list[str]:
        """Make an authenticator app count; return new recovery codes where the user has none.

        Raises:
            NotFound: no app of this user waits under that id.
            InvalidInput: the code is wrong.
        """

        def work(connection: Connection) -> list[str]:
            self.totp.confirm(connection, user_id, device_id, code)
            self._changed(connection, "factor.add", user_id, user_id, address, "totp")
            return self._first_codes(connection, user_id)

        return await self.database.write(work)

    async def first_recovery_codes(self, user_id: str) -> list[str]:
        """Return new recovery codes where the user has a factor and no code left."""
        return await self.database.write(lambda connection: self._first_codes(connection, user_id))

    async def renew_recovery_codes(self, user_id: str, address: str | None = None) -> list[str]:
        """Return ten new recovery codes; the old ones are void.

        Raises:
            Conflict: the user has no second factor whose loss they would help with.
        """

        def work(connection: Connection) -> list[str]:
            if not self.methods_of(connection, user_id):
                raise Conflict("Recovery codes stand in for a second factor. Add one first.")
            self._changed(connection, "factor.renew", user_id, user_id, address, "recovery")
            return self.recovery.renew(connection, user_id)

        return await self.database.write(work)

    async def remove(self, standing: Standing, factor_id: str, address: str | None = None) -> None:
        """Forget one factor; with the last one go the recovery codes.

        Raises:
            NotFound: the user has no such factor.
            Conflict: it is the last one, and a role of the user requires one.
        """
        user_id = standing.user_id

        def work(connection: Connection) -> None:
            if self.totp.remove(connection, user_id, factor_id):
                kind = "totp"
            elif forget_passkey(connection, user_id, factor_id):
                kind = "passkey"
            else:
                raise NotFound("You have no such factor. It may have been removed already.")
            if not self.methods_of(connection, user_id):
                if self.required(standing):
                    raise Conflict("Your role requires a second factor. Add another one first.")
                self.recovery.remove(connection, user_id)
            self._changed(connection, "factor.remove", user_id, user_id, address, kind)

        await self.database.write(work)

    async def remove_all(self, user_id: str, by: str, address: str | None = None) -> None:
        """Forget every factor of a person who lost them; an administrator's act."""

        def work(connection: Connection) -> None:
            self.forget(connection, user_id)
            self._changed(connection, "factor.remove", user_id, by, address, "all")

        await self.database.write(work)

    def forget(self, connection: Connection, user_id: str) -> None:
        """Forget every factor of a person, the sealed seeds too; for a person who is deleted."""
        self.totp.remove_all(connection, user_id)
        for passkey in passkeys_of(connection, user_id):
            forget_passkey(connection, user_id, passkey.id)
        self.recovery.remove(connection, user_id)

    async def _check(
        self,
        method: Literal["totp", "recovery"],
        user_id: str,
        address: str | None,
        accept: Callable[[Connection], bool],
    ) -> None:
        def work(connection: Connection) -> bool:
            accepted = accept(connection)
            self.audit.append(
                connection,
                AuditEvent(
                    action=f"login.{method}",
                    outcome="ok" if accepted else "refused",
                    principal=user_id,
                    kind="user",
                    address=address,
                ),
            )
            return accepted

        attempt = await self.throttle.proof(user_id)
        if not await self.database.write(work):
            raise Unauthenticated("The code is wrong or was used already. Try the next one.")
        await self.throttle.succeeded(attempt)

    def _first_codes(self, connection: Connection, user_id: str) -> list[str]:
        if "recovery" in (methods := self.methods_of(connection, user_id)) or not methods:
            return []
        return self.recovery.renew(connection, user_id)

    def _changed(
        self,
        connection: Connection,
        action: str,
        user_id: str,
        by: str,
        address: str | None,
        factor: str,
    ) -> None:
        self.audit.append(
            connection,
            AuditEvent(
                action=action,
                outcome="ok",
                principal=by,
                kind="user",
                address=address,
                target=user_id,
                detail={"factor": factor},
            ),
        )
        raise_generation(connection, "identity")
        raise_epoch(connection, [user_id])
