"""What is learned of tiers: found, forgotten, kept, shared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from uait_server_ext.routing.difficulty import Difficulty
from uait_server_ext.routing.posterior import DISCOUNT, Belief, Posterior
from uait_server_ext.storage.database import Database, sqlite_url

DAY = 86_400.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(sqlite_url(tmp_path / "uait.db"))
    database.open()
    yield database
    database.close()


def test_nothing_is_known_before_anything_was_seen() -> None:
    belief = Posterior(priors={"large": (9.0, 1.0)}).belief("math", "large")
    assert belief.quality == 0.9
    assert belief.seconds is None
    assert belief.usd_per_answer is None
    assert Posterior().belief("math", "small").quality == 0.75


def test_quality_time_and_cost_are_found() -> None:
    posterior = Posterior(clock=lambda: 0.0)
    for number in range(200):
        posterior.observe("math", "small", good=number % 4 > 0, seconds=2.0, usd=0.01)
        posterior.observe("code", "small", good=False, seconds=8.0)
    belief = posterior.belief("math", "small")
    assert belief.quality == pytest.approx(0.75, abs=0.03)
    assert belief.seconds == pytest.approx(2.0)
    assert belief.seconds_at(1.28) == pytest.approx(2.0)
    assert belief.usd_per_answer == pytest.approx(0.01)
    assert posterior.belief("code", "small").quality < 0.05


def test_the_spread_of_times_is_known() -> None:
    posterior = Posterior(clock=lambda: 0.0)
    for number in range(300):
        posterior.observe("chat", "small", seconds=1.0 if number % 2 else 9.0)
    belief = posterior.belief("chat", "small")
    assert belief.seconds == pytest.approx(3.0, rel=0.05)
    p90 = belief.seconds_at(1.28)
    assert p90 is not None
    assert 9.0 < p90 < 15.0


def test_thompson_sampling_finds_the_better_tier_and_follows_a_change() -> None:
    """Two tiers whose quality is exchanged half-way: most choices are the better one, twice."""
    random, posterior = Random(7), Posterior(clock=lambda: 0.0)
    quality = {"a": 0.9, "b": 0.4}
    shares = []
    for phase in range(2):
        chosen = []
        for _ in range(1500):
            tier = max("ab", key=lambda name: posterior.belief("math", name).draw(random))
            chosen.append(tier)
            posterior.observe("math", tier, good=random.random() < quality[tier])
        better = "a" if phase == 0 else "b"
        shares.append(chosen[-500:].count(better) / 500)
        quality = {"a": 0.4, "b": 0.9}
    assert min(shares) > 0.8


def test_no_more_than_the_last_hundred_count() -> None:
    posterior = Posterior(clock=lambda: 0.0)
    for _ in range(10_000):
        posterior.observe("math", "small", good=True, seconds=1.0)
    assert posterior.belief("math", "small").good <= 1 / (1 - DISCOUNT) + 1e-6


def test_what_nobody_sees_any_more_fades() -> None:
    time = [0.0]
    posterior = Posterior(clock=lambda: time[0], half_life_seconds=DAY)
    for _ in range(50):
        posterior.observe("math", "small", good=True)
    before = posterior.belief("math", "small").good
    time[0] += DAY
    assert posterior.belief("math", "small").good == pytest.approx(before / 2)
    time[0] += 30 * DAY
    assert posterior.belief("math", "small").quality == pytest.approx(0.75, abs=0.01)


def test_a_restart_forgets_nothing(database: Database) -> None:
    async def run() -> tuple[Belief, Belief, float, float]:
        first, difficulty = Posterior(database, lambda: 5.0), Difficulty()
        for _ in range(10):
            first.observe("math", "small", good=True, seconds=3.0, usd=0.5)
            difficulty.learn([0.5] * 23, hard=True)
        await first.flush(difficulty)
        assert first.pending == 0
        second, again = Posterior(database, lambda: 5.0), Difficulty()
        await second.load(again)
        kept = second.belief("math", "small")
        scores = difficulty.score([0.5] * 23), again.score([0.5] * 23)
        return first.belief("math", "small"), kept, *scores

    first, second, learned, kept = asyncio.run(run())
    assert first == second
    assert learned == kept


def test_two_processes_add_up(database: Database) -> None:
    async def run() -> list[Belief]:
        both = [Posterior(database, lambda: 0.0) for _ in range(2)]
        for posterior, good in zip(both, (True, False), strict=True):
            for _ in range(20):
                posterior.observe("math", "small", good=good)
        for posterior in (*both, both[0]):
            await posterior.flush()
        return [posterior.belief("math", "small") for posterior in both]

    one, two = asyncio.run(run())
    assert one == two
    assert one.good > 10
    assert one.bad > 10


def test_what_cannot_be_written_is_written_later(database: Database) -> None:
    async def run() -> None:
        posterior = Posterior(database, lambda: 0.0)
        posterior.observe("math", "small", good=True)
        write, database.write = database.write, failing  # type: ignore[method-assign,assignment]
        with pytest.raises(OSError, match="full"):
            await posterior.flush()
        assert posterior.pending == 1
        database.write = write  # type: ignore[method-assign]
        await posterior.flush()
        assert posterior.pending == 0

    asyncio.run(run())


async def failing(_work: object) -> None:
    raise OSError("disk full")


def test_rows_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uait_server_ext.routing.posterior.MAX_ROWS", 200)

    async def run() -> int:
        posterior = Posterior(database, lambda: 0.0)
        for number in range(300):
            posterior.observe("math", f"tier-{number}", good=True)
        await posterior.flush()
        again = Posterior(database)
        await again.load()
        return len(again._beliefs)

    assert asyncio.run(run()) == 200
