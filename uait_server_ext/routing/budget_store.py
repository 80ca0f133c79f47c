"""What budgets do in the database: set aside, book, give back. Each is a part of a transaction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from uait_server_ext.errors import BudgetExceeded

from .budget_models import (
    Budget,
    BudgetInfo,
    BudgetUse,
    Line,
    Units,
    period_end,
    period_start,
    quantity,
)
from .tables import UNITS, budget_reservations, budget_use, budgets

WAIT_SECONDS = 5
"""When to try again where calls under way hold what is missing."""

SHOWN_USES = 100
QUANTITIES = ("calls", "tokens", "usd", "seconds")
SCALE = {"calls": 1, "tokens": 1, "usd": 10**6, "seconds": 10**3}
SPANS = {"day": "a day", "month": "a month", "total": "in all"}
LIMITS = tuple(budgets.c[f"limit_{unit}"] for unit in UNITS)
USED = tuple(budget_use.c[f"used_{unit}"] for unit in UNITS)
HELD = tuple(budget_use.c[f"held_{unit}"] for unit in UNITS)
KEY = (budget_use.c.budget_id, budget_use.c.subject, budget_use.c.period_start)
# Built once: to build a statement takes longer than to run it.
ONE_USE = select(budget_use).where(*(column == bindparam(f"key_{column.name}") for column in KEY))
EXPIRED = select(budget_reservations).where(budget_reservations.c.expires_at <= bindparam("at"))
ENDED = delete(budget_reservations).where(budget_reservations.c.id == bindparam("reservation"))
RESERVE = insert(budget_reservations)
KEY_NAMES = tuple(f"key_{column.name}" for column in KEY)
ADD = (  # to one counter: what was used, and what is held more or less
    update(budget_use)
    .where(*(column == bindparam(f"key_{column.name}") for column in KEY))
    .values(
        {
            **{c.name: c + bindparam(f"more_{c.name}") for c in (*USED, *HELD)},
            "updated_at": bindparam("at"),
        }
    )
)


def hold(
    connection: Connection,
    id: str,
    parts: Sequence[Line],
    amount: Units,
    at: float,
    expires_at: float,
) -> BudgetExceeded | None:
    """Set an amount aside in all lines under a reservation's id, or return why it does not fit."""
    keys = [line.key for line in parts]
    lock(connection, [key[0] for key in keys])
    expire(connection, at)
    found = {key: connection.execute(ONE_USE, named(key)).first() for key in keys}
    rows = {key: row for key, row in found.items() if row is not None}
    for line in parts:
        row = rows.get(line.key)
        used = Units(*(getattr(row, c.name) for c in USED)) if row else Units()
        held = Units(*(getattr(row, c.name) for c in HELD)) if row else Units()
        if refusal := refused(line, amount, used, held, at):
            return refusal
    nothing = {c.name: 0 for c in (*USED, *HELD)}
    missing = [
        {**dict(zip((c.name for c in KEY), key, strict=True)), **nothing, "updated_at": at}
        for key in keys
        if key not in rows
    ]
    if missing:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(dialect.insert(budget_use).on_conflict_do_nothing(), missing)
    connection.execute(
        RESERVE,
        [
            {
                "id": id,
                **dict(zip((c.name for c in KEY), key, strict=True)),
                **amount._asdict(),
                "expires_at": expires_at,
            }
            for key in keys
        ],
    )
    add(connection, keys, Units(), amount, at)
    return None


def book(
    connection: Connection,
    id: str,
    parts: Sequence[Line],
    amount: Units,
    used: Units,
    at: float,
) -> None:
    """Add what was used to every line; drop what was held, unless its lease has ended."""
    lock(connection, [line.budget.id for line in parts])
    there = connection.execute(ENDED, {"reservation": id}).rowcount
    back = Units(*(-value for value in amount)) if there else Units()
    add(connection, [line.key for line in parts], used, back, at)


def expire(connection: Connection, at: float) -> None:
    """Give back what is held by those whose lease has ended."""
    for row in connection.execute(EXPIRED, {"at": at}).all():
        back = Units(*(-getattr(row, unit) for unit in UNITS))
        add(connection, [(row.budget_id, row.subject, row.period_start)], Units(), back, at)
        mine = (budget_reservations.c.id == row.id) & (
            budget_reservations.c.budget_id == row.budget_id
        )
        connection.execute(delete(budget_reservations).where(mine))


def add(
    connection: Connection,
    keys: Iterable[tuple[str, str, int]],
    used: Units,
    held: Units,
    at: float,
) -> None:
    """Change counters."""
    more = {f"more_used_{unit}": value for unit, value in used._asdict().items()}
    more |= {f"more_held_{unit}": value for unit, value in held._asdict().items()}
    connection.execute(ADD, [{**named(key), **more, "at": at} for key in keys])


def named(key: tuple[str, str, int]) -> dict[str, str | int]:
    """Return a counter's key as the statements above name it."""
    return dict(zip(KEY_NAMES, key, strict=True))


def lock(connection: Connection, ids: Iterable[str]) -> None:
    """Let one transaction at a time count against these budgets; SQLite has one writer anyway."""
    if connection.dialect.name != "sqlite":
        wanted = select(budgets.c.id).where(budgets.c.id.in_(ids)).order_by(budgets.c.id)
        connection.execute(wanted.with_for_update()).all()


def read_budgets(connection: Connection) -> tuple[Budget, ...]:
    """Return all budgets."""
    return tuple(
        Budget(row.id, row.kind, row.subject, row.period, tuple(row[-len(UNITS) :]))
        for row in connection.execute(
            select(budgets.c.id, budgets.c.kind, budgets.c.subject, budgets.c.period, *LIMITS)
        )
    )


def described(
    connection: Connection, budget: Budget, at: float, subject: str | None = None
) -> BudgetInfo:
    """Return a budget with what is used of it, by one subject or by those who use most."""
    start = period_start(budget.period, at)
    rows = (
        select(budget_use)
        .where(budget_use.c.budget_id == budget.id, budget_use.c.period_start == start)
        .order_by(*(column.desc() for column in USED))
        .limit(SHOWN_USES)
    )
    if subject is not None and budget.kind != "server":
        rows = rows.where(budget_use.c.subject == subject)
    return BudgetInfo(
        id=budget.id,
        kind=budget.kind,
        subject=budget.subject,
        period=budget.period,
        limits=quantity(budget.limits),
        use=[
            BudgetUse(
                subject=row.subject,
                used=quantity(getattr(row, c.name) for c in USED),
                held=quantity(getattr(row, c.name) for c in HELD),
                resets_at=period_end(budget.period, start),
            )
            for row in connection.execute(rows)
        ],
    )


def refused(
    line: Line, wanted: Units, used: Units, held: Units, at: float
) -> BudgetExceeded | None:
    """Return why an amount does not fit into what a line has left, none where it does."""
    for index, limit in enumerate(line.budget.limits):
        if limit is not None and used[index] + held[index] + wanted[index] > limit:
            return refusal_of(line, index, wanted[index], used[index], held[index], at)
    return None


def refusal_of(
    line: Line, index: int, wanted: int, used: int, held: int, at: float
) -> BudgetExceeded:
    """Say which budget a call does not fit into, and when to try again."""
    budget = line.budget
    limit = budget.limits[index] or 0
    end = period_end(budget.period, line.period_start)
    retry: int | None = None
    if used + wanted <= limit:
        retry = WAIT_SECONDS
        advice = "Try again when the calls under way have ended."
    elif end is None:
        advice = "It does not start anew: ask an administrator for more."
    else:
        retry = max(1, math.ceil(end - at))
        when = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
        advice = f"It starts anew at {when}."
    if used < limit < used + wanted:
        advice += " A shorter prompt or a lower `max_tokens` may fit now."
    unit = QUANTITIES[index]
    whose = "the server" if budget.kind == "server" else f"this {budget.kind}"
    return BudgetExceeded(
        f"The budget of {written(limit, unit)} {SPANS[budget.period]} for {whose} does not hold "
        f"this call: it may take {written(wanted, unit)}, {written(used, unit)} are used and "
        f"{written(held, unit)} are set aside for calls under way. {advice}",
        budget=budget.id,
        kind=budget.kind,
        period=budget.period,
        unit=unit,
        limit=limit / SCALE[unit],
        used=used / SCALE[unit],
        held=held / SCALE[unit],
        **({} if retry is None else {"retry_after": retry}),
    )


def written(amount: int, unit: str) -> str:
    """Write an amount for people."""
    value = amount / SCALE[unit]
    return {
        "calls": f"{value:,.0f} calls",
        "tokens": f"{value:,.0f} tokens",
        "usd": f"${value:,.4f}",
        "seconds": f"{value:,.1f} s",
    }[unit]
