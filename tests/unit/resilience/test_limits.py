"""Rate limits: the window slides, subjects are independent, losing Redis fails as it must."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uait_server_ext.errors import Busy, Unavailable
from uait_server_ext.resilience import limits
from uait_server_ext.resilience.limits import Rate, RateLimits, rates, subject

USER, KEY, IP = "user:ada", "key:key_1", "ip:192.0.2.1"
SMALL: dict[limits.RateClass, Rate] = {
    **limits.RATES,
    "read": Rate(user=5, key=3, ip=8),
    "login": Rate(user=2, key=2, ip=4),
}


class Hand:
    """A clock moved by hand."""

    def __init__(self, at: float = 6000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def small(clock: Hand) -> RateLimits:
    return RateLimits(rates=SMALL, clock=clock)


def refused(counter: RateLimits, *subjects: str) -> Busy:
    with pytest.raises(Busy) as caught:
        counter.hit_here("read", subjects)
    return caught.value


def test_the_limit_is_reached_and_told() -> None:
    counter = small(Hand())
    left = [counter.hit_here("read", [USER]).remaining for _ in range(5)]
    assert left == [4, 3, 2, 1, 0]
    error = refused(counter, USER)
    assert error.extensions["limit"] == 5
    assert "5 requests" in error.detail


def test_retry_after_is_when_the_next_request_passes() -> None:
    clock = Hand(6030.0)
    counter = small(clock)
    for _ in range(5):
        counter.hit_here("read", [USER])
    wait = refused(counter, USER).extensions["retry_after"]
    clock.at += wait - 1.5
    refused(counter, USER)
    clock.at += 1.5
    counter.hit_here("read", [USER])


@settings(max_examples=300)
@given(st.lists(st.floats(0.0, 40.0), min_size=1, max_size=80))
def test_two_windows_never_pass_more_than_twice_the_limit_and_retry_after_holds(
    steps: list[float],
) -> None:
    clock = Hand()
    counter = small(clock)
    passed: list[float] = []
    for step in steps:
        clock.at += step
        try:
            counter.hit_here("read", [USER])
        except Busy as error:
            clock.at += error.extensions["retry_after"]
            counter.hit_here("read", [USER])  # what was promised
        passed.append(clock.at)
    for end in passed:
        assert sum(end - 60 < at <= end for at in passed) <= 2 * 5


def test_user_key_and_address_are_limited_independently() -> None:
    counter = small(Hand())
    for _ in range(3):
        counter.hit_here("read", [IP, USER, KEY])
    assert "API key" in refused(counter, IP, USER, KEY).detail
    # The refused request has drained neither the user nor the address.
    for _ in range(2):
        counter.hit_here("read", [IP, USER])
    assert "You have" in refused(counter, IP, USER).detail
    for _ in range(3):
        counter.hit_here("read", [IP, "user:bob"])
    assert "address" in refused(counter, IP, "user:eve").detail


def test_classes_are_limited_independently() -> None:
    counter = small(Hand())
    for _ in range(5):
        counter.hit_here("read", [USER])
    assert counter.hit_here("write", [USER]).remaining > 0


def test_the_tightest_subject_is_reported() -> None:
    allowance = small(Hand()).hit_here("read", [IP, USER, KEY])
    assert (allowance.limit, allowance.remaining) == (3, 2)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SUBJECTS", 100)
    clock = Hand()
    counter = small(clock)
    for number in range(1000):
        counter.hit_here("read", [f"ip:{number}"])
        assert len(counter._windows) <= 100
    clock.at += 600
    counter.hit_here("read", [USER])
    assert len(counter._windows) == 1 or len(counter._windows) <= 100


def test_a_clock_set_back_neither_fails_nor_frees() -> None:
    clock = Hand()
    counter = small(clock)
    for _ in range(5):
        counter.hit_here("read", [USER])
    clock.at -= 3600
    refused(counter, USER)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "ip:192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "ip:2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "ip:192.0.2.1"),
        ("unix" * 100, "ip:" + ("unix" * 100)[:64]),
    ],
)
def test_an_address_is_one_subject_and_a_v6_network_is_too(address: str, expected: str) -> None:
    assert subject("ip", address) == expected


def test_an_administrator_changes_single_limits() -> None:
    changed = rates({"read": {"user": 7}})
    assert changed["read"].user == 7
    assert changed["read"].ip == limits.RATES["read"].ip
    with pytest.raises(ValueError, match="unknown classes: reed"):
        rates({"reed": {"user": 7}})
    with pytest.raises(ValueError, match="user"):
        rates({"read": {"address": 7}})


def test_a_hit_is_cheap_with_many_callers() -> None:
    counter = RateLimits(rates=rates({"read": {"user": 10**9, "key": 10**9, "ip": 10**9}}))
    for number in range(20_000):
        counter.hit_here("read", [f"ip:{number}"])
    started = time.perf_counter()
    for _ in range(2000):
        counter.hit_here("read", [IP, USER, KEY])
    # Some 12 µs where this was written; a counter that walks all its keys needs milliseconds.
    assert (time.perf_counter() - started) / 2000 < 300e-6


class TestRedis:
    def test_counts_are_shared_and_survive_a_restart(self, redis_server: Any) -> None:
        async def run() -> None:
            one, two = (RateLimits(redis_server.url, rates=SMALL) for _ in range(2))
            await one.hit("read", [USER])
            assert (await two.hit("read", [USER])).remaining == 3
            await two.hit("read", [USER])
            await two.close()
            after = RateLimits(redis_server.url, rates=SMALL)
            for _ in range(2):
                await after.hit("read", [USER])
            with pytest.raises(Busy) as caught:
                await one.hit("read", [USER])
            assert 1 <= caught.value.extensions["retry_after"] <= 120
            assert one.state.state == "ready"
            await one.close()
            await after.close()

        asyncio.run(run())

    def test_without_redis_logins_are_refused_and_the_rest_is_counted_here(
        self, redis_server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "REDIS_RETRY_SECONDS", 0.3)

        async def run() -> None:
            counter = RateLimits(redis_server.url, rates=SMALL)
            await counter.hit("login", [IP])
            redis_server.stop()
            started = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await counter.hit("login", [IP])
            assert caught.value.extensions["retry_after"] >= 1
            for _ in range(5):
                await counter.hit("read", [USER])
            with pytest.raises(Busy):
                await counter.hit("read", [USER])
            assert "by this server alone" in (counter.state.detail or "")
            assert time.monotonic() - started < 3
            redis_server.start()
            await asyncio.sleep(0.4)
            await counter.hit("login", [IP])
            assert counter.state.state == "ready"
            await counter.close()

        asyncio.run(run())
