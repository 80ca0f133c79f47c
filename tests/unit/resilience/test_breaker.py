"""The breaker opens by outcomes, lets one probe through, and waits longer after each failed one."""

from __future__ import annotations

import asyncio

import pytest

from uait_server_ext.errors import CircuitOpen, InvalidInput, UpstreamFailed
from uait_server_ext.resilience.breaker import PROBE_SECONDS, Breaker, BreakerSettings


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def breaker(clock: Hand) -> Breaker:
    return Breaker("the part", BreakerSettings(failure_rate=0.5), clock=clock)


def state_of(breaker: Breaker) -> str:
    return breaker.state


def break_it(breaker: Breaker) -> None:
    for _ in range(4):
        assert breaker.allow()
        breaker.failure()


def test_it_opens_at_the_failure_rate_and_not_before(breaker: Breaker) -> None:
    for outcome in ("good", "good", "bad", "good", "bad"):
        assert breaker.allow()
        breaker.success() if outcome == "good" else breaker.failure()
    assert state_of(breaker) == "closed"
    breaker.failure()
    assert state_of(breaker) == "open"
    assert not breaker.allow()
    assert breaker.opened == 1


def test_few_calls_say_nothing(breaker: Breaker) -> None:
    for _ in range(3):
        breaker.failure()
    assert state_of(breaker) == "closed"


def test_old_failures_are_forgotten(breaker: Breaker, clock: Hand) -> None:
    for _ in range(3):
        breaker.failure()
    clock.at += 61
    breaker.failure()
    assert state_of(breaker) == "closed"


def test_slow_calls_open_it_too(breaker: Breaker) -> None:
    breaker.success(seconds=1)
    for _ in range(4):
        assert state_of(breaker) == "closed"
        breaker.success(seconds=30)
    assert state_of(breaker) == "open"


def test_one_probe_goes_through_and_closes_it(breaker: Breaker, clock: Hand) -> None:
    break_it(breaker)
    assert 0 < breaker.wait_seconds <= 5
    clock.at += 5
    assert state_of(breaker) == "half-open"
    assert [breaker.allow() for _ in range(5)] == [True, False, False, False, False]
    breaker.success()
    assert state_of(breaker) == "closed"
    assert breaker.allow()


def test_each_failed_probe_doubles_the_wait_up_to_a_minute(breaker: Breaker, clock: Hand) -> None:
    break_it(breaker)
    waits = []
    for _ in range(6):
        clock.at += breaker.wait_seconds
        assert breaker.allow()
        breaker.failure()
        waits.append(round(breaker.wait_seconds))
    assert waits == [10, 20, 40, 60, 60, 60]


def test_a_probe_that_says_nothing_gives_its_place_up(breaker: Breaker, clock: Hand) -> None:
    break_it(breaker)
    clock.at += 5
    assert breaker.allow()
    breaker.abandon()
    assert breaker.allow()
    assert not breaker.allow()
    clock.at += PROBE_SECONDS
    assert breaker.allow()


def test_a_call_from_before_it_opened_decides_nothing(breaker: Breaker, clock: Hand) -> None:
    assert breaker.allow()
    break_it(breaker)
    breaker.success()
    assert state_of(breaker) == "open"
    clock.at += 5
    breaker.failure()
    assert state_of(breaker) == "half-open"


def test_it_rests_as_long_as_it_is_told(breaker: Breaker, clock: Hand) -> None:
    breaker.rest(30)
    assert not breaker.allow()
    clock.at += 30
    assert breaker.allow()
    breaker.success()
    assert state_of(breaker) == "closed"


def test_as_a_context_it_counts_failures_and_not_bad_requests(breaker: Breaker) -> None:
    async def call(error: BaseException | None) -> None:
        async with breaker:
            if error is not None:
                raise error

    async def go() -> None:
        for error in (InvalidInput("no"), asyncio.CancelledError()):
            for _ in range(5):
                with pytest.raises(type(error)):
                    await call(error)
        assert state_of(breaker) == "closed"
        for _ in range(4):
            with pytest.raises(UpstreamFailed):
                await call(UpstreamFailed("gone"))
        with pytest.raises(CircuitOpen, match="the part") as caught:
            await call(None)
        assert caught.value.extensions["retry_after"] == 5

    asyncio.run(go())
