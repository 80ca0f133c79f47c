"""Budgets: kept before the call, under concurrency, by several processes, over crashes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uait_server_ext.errors import BudgetExceeded, NotFound
from uait_server_ext.events.audit import AuditLog
from uait_server_ext.identity.principal import Principal
from uait_server_ext.inference.models import ChatRequest, Message
from uait_server_ext.routing.budget import LEASE_SECONDS, Budgets
from uait_server_ext.routing.budget_models import (
    BudgetContent,
    BudgetUse,
    Quantity,
    limits_of,
    period_end,
    period_start,
    units,
    worst_case,
)
from uait_server_ext.routing.models import Amount, Caller, Price
from uait_server_ext.storage.database import Database, sqlite_url
from uait_server_ext.storage.key_sources import open_source
from uait_server_ext.storage.master_key import open_keyring
from uait_server_ext.storage.sealing import Sealer

NOON = datetime(2026, 2, 14, 12, tzinfo=UTC).timestamp()
ADMIN = Principal("usr_admin", "Admin")
ADA = Caller("usr_ada", notebook="sums.ipynb", run="run_1")
BEN = Caller("usr_ben", notebook="sums.ipynb")
ONE = Amount(calls=1)


@dataclass
class Bench:
    """Budgets on a database of their own, and their clock."""

    database: Database
    budgets: Budgets
    time: list[float] = field(default_factory=lambda: [NOON])

    def put(self, kind: str, subject: str = "", period: str = "day", **limits: Any) -> str:
        content = content_of(kind, subject, period, **limits)
        return asyncio.run(self.budgets.put(ADMIN, content)).id

    def used(self, subject: str) -> Quantity:
        return self.use(subject).used

    def use(self, subject: str) -> BudgetUse:
        found = asyncio.run(self.budgets.info())
        return next(use for budget in found for use in budget.use if use.subject == subject)


def content_of(kind: str, subject: str, period: str, **limits: float) -> BudgetContent:
    return BudgetContent.model_validate(
        {"kind": kind, "subject": subject, "period": period, "limits": limits}
    )


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(sqlite_url(tmp_path_factory.mktemp("budgets") / "uait.db"))
    database.open()
    yield database
    database.close()


@pytest.fixture
def bench(database: Database) -> Bench:
    return emptied(database)


def emptied(database: Database) -> Bench:
    time = [NOON]
    made = Bench(database, Budgets(database, lambda: time[0]), time)
    for budget in asyncio.run(made.budgets.info()):
        asyncio.run(made.budgets.remove(ADMIN, budget.id))
    return made


async def call(budgets: Budgets, caller: Caller, estimate: Amount, actual: Amount) -> bool:
    """Do what the router does for one call; tell whether it was let through."""
    try:
        reservation = await budgets.reserve(caller, estimate)
    except BudgetExceeded:
        return False
    await asyncio.sleep(0)
    await reservation.settle(actual)
    return True


def refused(run: Callable[[], Awaitable[Any]]) -> BudgetExceeded:
    async def attempt() -> Any:
        return await run()

    with pytest.raises(BudgetExceeded) as caught:
        asyncio.run(attempt())
    return caught.value


def test_without_budgets_nothing_is_written(bench: Bench) -> None:
    async def run() -> None:
        reservation = await bench.budgets.reserve(ADA, ONE)
        await reservation.settle(ONE)

    asyncio.run(run())
    assert asyncio.run(bench.budgets.info()) == []


def test_a_budget_ends_with_its_last_call_and_says_so(bench: Bench) -> None:
    id = bench.put("principal", "usr_ada", calls=2)
    for _ in range(2):
        assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    error = refused(lambda: bench.budgets.reserve(ADA, ONE))
    assert error.status == 429
    assert error.code == "budget-exceeded"
    assert error.extensions == {
        "budget": id,
        "kind": "principal",
        "period": "day",
        "unit": "calls",
        "limit": 2,
        "used": 2,
        "held": 0,
        "retry_after": 12 * 3600,
    }
    assert "2 calls a day" in error.detail
    assert "2026-02-15 00:00 UTC" in error.detail
    assert asyncio.run(call(bench.budgets, BEN, ONE, ONE)), "it is Ada's budget"


def test_a_new_period_starts_anew(bench: Bench) -> None:
    bench.put("principal", "*", "day", calls=1)
    bench.put("server", "", "month", calls=3)
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    assert not asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    bench.time[0] += 86_400
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    bench.time[0] += 86_400
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    bench.time[0] += 86_400
    error = refused(lambda: bench.budgets.reserve(ADA, ONE))
    march = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    assert error.extensions["kind"] == "server"
    assert error.extensions["retry_after"] == march - bench.time[0]
    bench.time[0] = march
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))


def test_a_total_budget_never_starts_anew(bench: Bench) -> None:
    bench.put("run", "*", "total", calls=1)
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    bench.time[0] += 1000 * 86_400
    error = refused(lambda: bench.budgets.reserve(ADA, ONE))
    assert "retry_after" not in error.extensions
    assert asyncio.run(call(bench.budgets, BEN, ONE, ONE)), "Ben's call belongs to no run"


def test_a_named_budget_takes_the_place_of_everyones(bench: Bench) -> None:
    bench.put("principal", "*", calls=1)
    bench.put("principal", "usr_ada", calls=3)
    assert [asyncio.run(call(bench.budgets, ADA, ONE, ONE)) for _ in range(4)].count(True) == 3
    assert [asyncio.run(call(bench.budgets, BEN, ONE, ONE)) for _ in range(4)].count(True) == 1


def test_two_people_have_notebooks_of_one_name(bench: Bench) -> None:
    bench.put("notebook", "*", calls=1)
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    assert asyncio.run(call(bench.budgets, BEN, ONE, ONE))
    assert not asyncio.run(call(bench.budgets, BEN, ONE, ONE))


@pytest.mark.parametrize(
    ("limits", "most", "took"),
    [
        ({"tokens": 1000}, Amount(1, tokens=600), Amount(1, tokens=300)),
        ({"usd": 0.01}, Amount(1, usd=0.006), Amount(1, usd=0.003)),
        ({"seconds": 10}, Amount(1, seconds=6), Amount(1, seconds=3)),
    ],
)
def test_what_was_not_used_comes_back(
    bench: Bench, limits: dict[str, Any], most: Amount, took: Amount
) -> None:
    """Reserve the worst case, book what it was: two fit that would not have together."""
    bench.put("principal", "usr_ada", **limits)

    async def run() -> None:
        first = await bench.budgets.reserve(ADA, most)
        with pytest.raises(BudgetExceeded) as caught:
            await bench.budgets.reserve(ADA, most)
        assert caught.value.extensions["retry_after"] <= 5, "calls under way hold the rest"
        await first.settle(took)
        second = await bench.budgets.reserve(ADA, most)
        await second.release()
        await second.settle(took)  # a second end is none
        third = await bench.budgets.reserve(ADA, most)
        await third.settle(took)

    asyncio.run(run())
    use = bench.use("usr_ada")
    assert limits_of(use.used)[1:] == units(Amount(2, *(2 * x for x in parts(took))))[1:]
    assert set(limits_of(use.held)) == {0}


def parts(amount: Amount) -> tuple[Any, ...]:
    return amount.tokens, amount.usd, amount.seconds


def test_a_released_call_counts_nothing(bench: Bench) -> None:
    bench.put("server", calls=1)

    async def run() -> None:
        for _ in range(5):
            await (await bench.budgets.reserve(ADA, ONE)).release()

    asyncio.run(run())
    assert bench.used("").calls == 0


def test_what_a_crashed_server_held_comes_back_after_its_lease(bench: Bench) -> None:
    bench.put("principal", "usr_ada", "total", calls=1)

    async def crash() -> Any:
        return await bench.budgets.reserve(ADA, ONE)

    lost = asyncio.run(crash())
    refused(lambda: bench.budgets.reserve(ADA, ONE))
    bench.time[0] += LEASE_SECONDS
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    # It was no crash, only slow: what it took is booked all the same, and nothing is given twice.
    asyncio.run(lost.settle(ONE))
    use = bench.use("usr_ada")
    assert (use.used.calls, use.held.calls) == (2, 0)


def test_a_call_of_known_length_is_leased_for_that(bench: Bench) -> None:
    bench.put("principal", "usr_ada", "total", calls=1)
    asyncio.run(hold(bench.budgets, Amount(1, seconds=30)))
    bench.time[0] += LEASE_SECONDS
    refused(lambda: bench.budgets.reserve(ADA, ONE))
    bench.time[0] += 31
    assert asyncio.run(call(bench.budgets, ADA, ONE, ONE))


async def hold(budgets: Budgets, amount: Amount) -> None:
    await budgets.reserve(ADA, amount)


def test_a_caller_that_goes_away_holds_nothing(bench: Bench) -> None:
    bench.put("server", calls=100)

    async def run() -> None:
        for wait in (0, 0, 0.001, 0.003, 0.01, 0.02):
            task = asyncio.ensure_future(bench.budgets.reserve(ADA, ONE))
            await asyncio.sleep(wait)
            if task.done():
                await (await task).release()
            task.cancel()
        for _ in range(500):
            (budget,) = await bench.budgets.info()
            if all(use.held.calls == 0 for use in budget.use):
                break
            await asyncio.sleep(0.02)

    asyncio.run(run())
    use = bench.use("")
    assert (use.used.calls, use.held.calls) == (0, 0)


@pytest.mark.parametrize("limit", [1, 37])
def test_two_hundred_at_once_never_pass_the_limit(bench: Bench, limit: int) -> None:
    """No estimate was too small, so that not even one in flight is over."""
    bench.put("principal", "usr_ada", calls=limit, tokens=10_000)
    at_work, most = 0, 0

    async def one(number: int) -> bool:
        nonlocal at_work, most
        try:
            reservation = await bench.budgets.reserve(ADA, Amount(1, tokens=10))
        except BudgetExceeded:
            return False
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.001 * (number % 7))
        at_work -= 1
        await reservation.settle(Amount(1, tokens=number % 10))
        return True

    async def run() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(200)))

    through = asyncio.run(run()).count(True)
    assert through == limit, "all of the budget, and no more"
    assert most <= limit
    use = bench.use("usr_ada")
    assert (use.used.calls, use.held.calls) == (limit, 0)


def test_a_call_that_takes_more_than_was_reserved_is_over_by_no_more_than_that(
    bench: Bench,
) -> None:
    """One at a time: when the first that is over has ended, nothing is let through any more."""
    bench.put("principal", "usr_ada", tokens=100)
    done = [
        asyncio.run(call(bench.budgets, ADA, Amount(1, tokens=10), Amount(1, tokens=30)))
        for _ in range(10)
    ]
    assert done.count(True) == 4
    assert bench.used("usr_ada").tokens == 120


LEAST, MOST = 0, 30
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["usr_ada", "usr_ben"]),
        st.integers(1, MOST),  # reserved
        st.integers(LEAST, MOST),  # taken, at most what was reserved
        st.integers(0, 3),  # how long it runs
        st.booleans(),  # whether its server dies
    ),
    min_size=1,
    max_size=40,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(limit=st.integers(0, 200), everyones=st.integers(0, 300), calls=CALLS)
def test_whatever_comes_no_limit_is_passed(
    database: Database, limit: int, everyones: int, calls: list[tuple[str, int, int, int, bool]]
) -> None:
    bench = emptied(database)
    bench.put("principal", "*", tokens=limit)
    bench.put("server", tokens=everyones)

    async def one(who: str, reserve: int, take: int, ticks: int, dies: bool) -> int:
        try:
            held = await bench.budgets.reserve(Caller(who), Amount(1, tokens=reserve))
        except BudgetExceeded:
            return 0
        for _ in range(ticks):
            await asyncio.sleep(0)
        if dies:
            return 0
        await held.settle(Amount(1, tokens=min(take, reserve)))
        return min(take, reserve)

    async def run() -> list[int]:
        return await asyncio.gather(*(one(*call) for call in calls))

    took = asyncio.run(run())
    bench.time[0] += LEASE_SECONDS
    asyncio.run(call(bench.budgets, BEN, Amount(), Amount()))  # what the dead held comes back
    found = {
        use.subject: (use.used.tokens or 0, use.held.tokens)
        for budget in asyncio.run(bench.budgets.info())
        for use in budget.use
    }
    for who in ("usr_ada", "usr_ben"):
        used, held = found.get(who, (0, 0))
        assert used == sum(t for t, c in zip(took, calls, strict=True) if c[0] == who) <= limit
        assert held == 0
    assert found[""][0] == sum(took) <= everyones
    assert found[""][1] == 0


PROCESS = """
import asyncio, sys
from uait_server_ext.errors import BudgetExceeded
from uait_server_ext.routing.budget import Budgets
from uait_server_ext.routing.models import Amount, Caller
from uait_server_ext.storage.database import Database

async def main():
    budgets, through = Budgets(database), 0
    async def one():
        nonlocal through
        try:
            reservation = await budgets.reserve(Caller("usr_ada"), Amount(calls=1))
        except BudgetExceeded:
            return
        through += 1
        await reservation.settle(Amount(calls=1))
    await asyncio.gather(*(one() for _ in range(50)))
    print(through)

database = Database(sys.argv[1])
database.open()
asyncio.run(main())
database.close()
"""


def test_several_processes_share_one_budget(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "uait.db"))
    database.open()
    try:
        asyncio.run(Budgets(database).put(ADMIN, content_of("principal", "*", "total", calls=60)))
        command = [sys.executable, "-c", PROCESS, str(database.url)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
        through = [int(process.communicate(timeout=120)[0]) for process in processes]
        assert sum(through) == 60
        use = asyncio.run(Budgets(database).info())[0].use[0]
        assert (use.used.calls, use.held.calls) == (60, 0)
    finally:
        database.close()


def test_people_see_what_is_theirs(bench: Bench) -> None:
    bench.put("principal", "*", calls=10)
    bench.put("principal", "usr_ben", "month", calls=10)
    bench.put("server", calls=100)
    for caller in (ADA, BEN):
        asyncio.run(call(bench.budgets, caller, ONE, ONE))
    shown = {
        (budget.kind, budget.period, use.subject)
        for budget in asyncio.run(bench.budgets.info("usr_ada"))
        for use in budget.use
    }
    assert shown == {("principal", "day", "usr_ada"), ("server", "day", "")}


def test_a_person_that_is_deleted_leaves_nothing(bench: Bench) -> None:
    bench.put("principal", "usr_ada", calls=10)
    bench.put("notebook", "*", calls=10)
    asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    bench.database.write_now(lambda c: bench.budgets.forget(c, "usr_ada"))
    left = asyncio.run(bench.budgets.info())
    assert [(budget.kind, budget.use) for budget in left] == [("notebook", [])]


def test_a_budget_that_is_set_again_keeps_what_was_used(bench: Bench) -> None:
    id = bench.put("principal", "*", calls=5)
    asyncio.run(call(bench.budgets, ADA, ONE, ONE))
    assert bench.put("principal", "*", calls=1) == id
    refused(lambda: bench.budgets.reserve(ADA, ONE))
    assert bench.used("usr_ada").calls == 1


def test_changes_are_in_the_audit_log(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "uait.db"))
    database.open()
    try:
        sealer = Sealer(open_keyring(database, open_source("file:", tmp_path / "keys")))
        audit = AuditLog(database, sealer, tmp_path / "audit.anchor")
        audit.open()
        budgets = Budgets(database, audit=audit)
        made = asyncio.run(budgets.put(ADMIN, content_of("principal", "*", "day", usd=1.5)))
        asyncio.run(budgets.remove(ADMIN, made.id))
        with pytest.raises(NotFound):
            asyncio.run(budgets.remove(ADMIN, made.id))
        from uait_server_ext.events.models import AuditQuery

        events = asyncio.run(audit.query(AuditQuery(action="budget."))).events
        assert [(e.action, e.target) for e in events] == [
            ("budget.delete", made.id),
            ("budget.set", made.id),
        ]
        assert events[1].detail["usd"] == "1.5"
    finally:
        database.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "server", "subject": "usr_ada", "period": "day", "limits": {"calls": 1}},
        {"kind": "principal", "subject": "", "period": "day", "limits": {"calls": 1}},
        {"kind": "principal", "subject": "*", "period": "day", "limits": {}},
        {"kind": "principal", "subject": "*", "period": "week", "limits": {"calls": 1}},
        {"kind": "principal", "subject": "*", "period": "day", "limits": {"calls": -1}},
        {"kind": "principal", "subject": "*", "period": "day", "limits": {"usd": float("nan")}},
    ],
)
def test_what_is_no_budget_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BudgetContent.model_validate(wrong)


@given(st.floats(0, 4e9), st.sampled_from(["day", "month"]))
def test_a_moment_lies_in_its_period(at: float, period: Any) -> None:
    start = period_start(period, at)
    end = period_end(period, start)
    assert end is not None
    assert start <= at < end
    assert period_start(period, end) == end
    assert end - start in ((86_400,) if period == "day" else [n * 86_400 for n in range(28, 32)])


@given(st.text(max_size=200), st.integers(1, 1000))
def test_the_worst_case_is_no_less_than_a_token_a_byte(text: str, max_tokens: int) -> None:
    request = ChatRequest(messages=[Message(role="user", content=text)], max_tokens=max_tokens)
    most = worst_case(request, Price(1.0, 2.0))
    assert most.tokens >= len(text.encode("utf-8", "surrogatepass")) + max_tokens
    assert most.usd >= (len(text) + 2 * max_tokens) / 1e6
    assert (most.calls, most.seconds) == (1, 60.0)
