"""Budgets: hard limits of calls, tokens, money and seconds, kept before a call is made.

::

    reserve(caller, most it may take) ─ fits? ─► held += most ─► the call ─► settle(what it took)
            │ does not                                              │ was not made ─► release()
            ▼                                                       │ its server died
      BudgetExceeded                                       its lease ends ─► held -= most

`used + held` never passes a limit, in however many processes, so that what calls take passes it by
no more than a call takes more than was reserved for it. Requests that come at once share one
transaction: a durable commit takes milliseconds, and each call needs two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, delete, insert, select, update

from uait_server_ext.errors import NotFound
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.storage.database import Database, raise_generation
from uait_server_ext.storage.ids import Clock, new_id, now

from .budget_models import Budget, BudgetContent, BudgetInfo, Line, Units, limits_of, lines, units
from .budget_store import LIMITS, book, described, hold, read_budgets
from .group_commit import GroupCommit
from .models import Amount, Caller
from .tables import budget_use, budgets

GENERATION = "budgets"
LEASE_SECONDS = 600.0
"""For how long a call may hold its part beyond the time that was reserved for it."""

KEEP_SECONDS = 400 * 86_400.0


class Holder(Protocol):
    """Who sets a budget; a `Principal` of the identity domain."""

    @property
    def id(self) -> str:
        """The user's id."""

    @property
    def kind(self) -> Any:
        """What acts in the user's name."""


class Reservation:
    """A part of some budgets, set aside for one call; settle or release it once."""

    def __init__(self, owner: Budgets, id: str, parts: Sequence[Line], amount: Units) -> None:
        self.id = id
        self.parts = parts
        self.amount = amount
        self._owner = owner
        self._open = bool(parts)

    async def settle(self, actual: Amount) -> None:
        """Book what the call took, and give the rest back; a second time does nothing."""
        if self._open:
            self._open = False
            # The call was made: not even a cancelled caller must keep that from being booked.
            await asyncio.shield(self._owner.end(self, units(actual)))

    async def release(self) -> None:
        """Give all of it back: the call was not made."""
        await self.settle(Amount())


class Budgets:
    """Set, read and keep budgets in the database, for every process on it."""

    def __init__(
        self, database: Database, clock: Clock = now, *, audit: AuditLog | None = None
    ) -> None:
        self.database = database
        self.clock = clock
        self.audit = audit
        self._commit = GroupCommit(database)
        self._known: tuple[int, tuple[Budget, ...]] = (-1, ())

    async def reserve(self, caller: Caller, estimate: Amount) -> Reservation:
        """Set the most that a call can take aside, before it is made.

        Raises:
            BudgetExceeded: it does not fit; says which budget, its limit and what is used.
        """
        at = self.clock()
        parts = lines(await self._budgets(), caller, at)
        reservation = Reservation(self, new_id("rsv"), parts, units(estimate))
        if not parts:
            return reservation
        lease = estimate.seconds + LEASE_SECONDS
        held = asyncio.ensure_future(
            self._commit.run(
                lambda c: hold(c, reservation.id, parts, reservation.amount, at, at + lease)
            )
        )
        try:
            await asyncio.shield(held)
        except asyncio.CancelledError:
            held.add_done_callback(lambda done: self._give_back(done, reservation))
            raise
        return reservation

    async def end(self, reservation: Reservation, used: Units) -> None:
        """Book what was used under a reservation and drop it; see `Reservation.settle`."""
        at = self.clock()
        await self._commit.run(
            lambda c: book(c, reservation.id, reservation.parts, reservation.amount, used, at)
        )

    async def put(
        self, holder: Holder, content: BudgetContent, *, address: str | None = None
    ) -> BudgetInfo:
        """Set a budget; one of the same kind, subject and period gets the new limits."""

        def work(connection: Connection) -> str:
            at = self.clock()
            prune(connection, at - KEEP_SECONDS)
            id = write(connection, content, at)
            self._note(connection, holder, "budget.set", id, address, written_out(content))
            return id

        id = await self.database.write(work)
        return next(one for one in await self.info() if one.id == id)

    async def remove(self, holder: Holder, id: str, *, address: str | None = None) -> None:
        """Delete a budget with what was counted against it.

        Raises:
            NotFound: there is none of that id.
        """

        def work(connection: Connection) -> None:
            if not connection.execute(delete(budgets).where(budgets.c.id == id)).rowcount:
                raise NotFound(f"There is no budget {id!r}. See `uait budgets list`.")
            raise_generation(connection, GENERATION)
            self._note(connection, holder, "budget.delete", id, address, {})

        await self.database.write(work)

    async def info(self, principal: str | None = None) -> list[BudgetInfo]:
        """Return all budgets with what is used, or what a principal's own calls go against."""
        at = self.clock()
        known = await self._budgets()
        if principal is None:
            return await self.database.read(
                lambda c: [described(c, budget, at) for budget in known]
            )
        mine = [line.budget for line in lines(known, Caller(principal), at)]
        return await self.database.read(
            lambda c: [described(c, budget, at, principal) for budget in mine]
        )

    def forget(self, connection: Connection, user_id: str) -> None:
        """Delete the budgets of a person, in the transaction that deletes them."""
        mine = (budgets.c.kind == "principal") & (budgets.c.subject == user_id)
        connection.execute(delete(budgets).where(mine))
        theirs = budget_use.c.subject.startswith(f"{user_id}/", autoescape=True)
        connection.execute(delete(budget_use).where((budget_use.c.subject == user_id) | theirs))
        raise_generation(connection, GENERATION)

    async def _budgets(self) -> tuple[Budget, ...]:
        generation = await self.database.generation(GENERATION)
        if self._known[0] != generation:
            self._known = (generation, await self.database.read(read_budgets))
        return self._known[1]

    def _note(
        self,
        connection: Connection,
        holder: Holder,
        action: str,
        id: str,
        address: str | None,
        detail: dict[str, str],
    ) -> None:
        if self.audit:
            self.audit.append(
                connection,
                AuditEvent(
                    action=action,
                    outcome="ok",
                    principal=holder.id,
                    kind=holder.kind,
                    address=address,
                    target=id,
                    detail=detail,
                ),
            )

    def _give_back(self, held: asyncio.Future[None], reservation: Reservation) -> None:
        """Release what a caller that has gone would have had."""
        if not held.cancelled() and held.exception() is None:
            self._commit.later(
                lambda c: book(
                    c, reservation.id, reservation.parts, reservation.amount, Units(), self.clock()
                )
            )


def write(connection: Connection, content: BudgetContent, at: float) -> str:
    """Write a new budget, or the one of this kind, subject and period anew; return its id."""
    table = budgets.c
    same = (
        (table.kind == content.kind)
        & (table.subject == content.subject)
        & (table.period == content.period)
    )
    values: dict[str, Any] = {"updated_at": at}
    values |= zip((column.name for column in LIMITS), limits_of(content.limits), strict=True)
    id: str | None = connection.scalar(select(table.id).where(same))
    if id is None:
        id = new_id("bud")
        fresh = content.model_dump(exclude={"limits"})
        connection.execute(insert(budgets).values(id=id, **fresh, **values))
    else:
        connection.execute(update(budgets).where(same).values(values))
    raise_generation(connection, GENERATION)
    return id


def prune(connection: Connection, before: float) -> None:
    """Forget what was used in periods, and by runs, long past."""
    of_runs = select(budgets.c.id).where(budgets.c.kind == "run")
    past = (budget_use.c.period_start > 0) | budget_use.c.budget_id.in_(of_runs)
    connection.execute(delete(budget_use).where(past, budget_use.c.updated_at < before))


def written_out(content: BudgetContent) -> dict[str, str]:
    """Return a budget as the audit log keeps it."""
    limits = content.limits.model_dump(exclude_none=True)
    return {name: str(value) for name, value in limits.items()} | content.model_dump(
        exclude={"limits"}
    )
