"""Passwords: the rules, the costs, and that the work is bounded."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Iterator

import pytest

from uait_server_ext.errors import Busy, InvalidInput, TooLarge, WeakPassword
from uait_server_ext.identity import passwords
from uait_server_ext.identity.passwords import Passwords, breached, check_new_password, normalise


@pytest.fixture
def quick() -> Iterator[Passwords]:
    built = Passwords(memory_kib=8, passes=1)
    yield built
    built.close()


@pytest.mark.parametrize(
    "password",
    [
        "seven77",
        "password",
        "PassWord",
        "qwertyuiop",
        "1234567890",
        "ｐａｓｓｗｏｒｄ",
        "uait2026!",
        "Universal AI Tools",
        "jupyterlab123",
        "jupyter-uait!",
        "ada.lovelace",
        "Ada_Lovelace_1",
        "lovelace1843",
    ],
)
def test_guessable_passwords_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword):
        check_new_password(password, "ada.lovelace", "Ada Lovelace")


@pytest.mark.parametrize(
    "password",
    [
        "jupyter orbits the sun slowly",
        "correct horse battery staple",
        "vier Füße, ñandú, 漢字 и 🦆",
        "x7#qLm2!",
        "ada met three ducks today",
        "pass word of many words",
        "tab\tand newline\n inside it",
    ],
)
def test_long_and_unicode_passwords_pass(password: str) -> None:
    check_new_password(password, "ada", "Ada Lovelace")


def test_short_names_forbid_nothing() -> None:
    check_new_password("alibaba-forty", "al", "B A")


def test_the_list_covers_the_commonest() -> None:
    common = ["12345678", "iloveyou", "baseball", "trustno1", "1qaz2wsx", "sunshine", "princess"]
    assert breached().issuperset(common)
    assert len(breached()) > 15_000
    assert all(len(word) >= 8 for word in breached() if word)


def test_the_list_is_read_when_it_is_needed() -> None:
    breached.cache_clear()
    with pytest.raises(WeakPassword, match="at least 8"):
        check_new_password("short")
    assert breached.cache_info().currsize == 0


def test_too_long_is_refused_before_any_work(
    quick: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hash_and_verify() -> None:
        for attempt in (quick.hash, lambda p: quick.verify(None, p)):
            with pytest.raises(TooLarge):
                await attempt("ü" * 513)

    monkeypatch.setattr(Passwords, "_run", None)
    asyncio.run(hash_and_verify())


def test_a_lone_surrogate_is_no_password() -> None:
    with pytest.raises(InvalidInput):
        normalise("abcdefgh\ud800")


def test_nothing_is_cut_off(quick: Passwords) -> None:
    long = "é" * 512

    async def check() -> None:
        stored = await quick.hash(long)
        assert await quick.verify(stored, long)
        assert not await quick.verify(stored, long[:-1])
        assert not await quick.verify(stored, long[:-1] + "e")
        nul = await quick.hash("before\0after one")
        assert not await quick.verify(nul, "before\0after two")

    asyncio.run(check())


def test_two_spellings_of_one_text_are_one_password(quick: Passwords) -> None:
    async def check() -> None:
        stored = await quick.hash("caf\u00e9 au lait")
        assert await quick.verify(stored, "cafe\u0301 au lait")
        assert not await quick.verify(stored, "cafe au lait")

    asyncio.run(check())


def test_hashes_are_argon2id_of_at_least_the_recommended_cost() -> None:
    built = Passwords()
    stored = built.hash_now("correct horse battery staple")
    built.close()
    found = re.fullmatch(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$[^$]+\$[^$]+", stored)
    assert found
    memory, passes, lanes = map(int, found.groups())
    assert (memory, passes, lanes) == (passwords.MEMORY_KIB, passwords.PASSES, passwords.LANES)
    assert memory >= 19 * 1024
    assert passes >= 2
    assert built.hash_now("same") != built.hash_now("same")


def test_no_account_costs_as_much_as_a_wrong_password() -> None:
    built = Passwords()
    stored = built.hash_now("correct horse battery staple")

    async def median(hashed: str | None) -> float:
        times = []
        for _ in range(9):
            before = time.thread_time_ns(), time.process_time_ns()
            assert not await built.verify(hashed, "wrong horse")
            times.append(time.process_time_ns() - before[1])
        return statistics.median(times)

    async def ratio() -> float:
        await built.verify(None, "warm")
        return await median(None) / await median(stored)

    try:
        assert 0.8 < asyncio.run(ratio()) < 1.25
    finally:
        built.close()


def test_a_hash_of_other_costs_is_outdated(quick: Passwords) -> None:
    old = Passwords(memory_kib=16, passes=1)
    stored = old.hash_now("x")
    old.close()
    assert asyncio.run(quick.verify(stored, "x"))
    assert quick.outdated(stored)
    assert not quick.outdated(quick.hash_now("x"))


@pytest.mark.parametrize("stored", ["", "x", "$argon2id$v=19$broken", "plain text"])
def test_a_broken_hash_opens_nothing(quick: Passwords, stored: str) -> None:
    assert not asyncio.run(quick.verify(stored, "x"))


def test_more_than_the_queue_is_turned_away() -> None:
    built = Passwords(threads=1, queue=2)

    async def many() -> list[object]:
        return await asyncio.gather(
            *(built.verify(None, "x") for _ in range(6)), return_exceptions=True
        )

    try:
        outcomes = asyncio.run(many())
        assert [type(one) for one in outcomes] == [bool] * 3 + [Busy] * 3
        assert isinstance(outcomes[-1], Busy)
        assert outcomes[-1].extensions["retry_after"] == 5
        assert asyncio.run(built.verify(None, "again")) is False
    finally:
        built.close()


def test_the_event_loop_stays_free_while_passwords_are_hashed() -> None:
    built = Passwords()

    async def longest_gap() -> float:
        hashing = asyncio.gather(*(built.verify(None, "x") for _ in range(10)))
        worst, last = 0.0, time.perf_counter()
        while not hashing.done():
            await asyncio.sleep(0.001)
            worst, last = max(worst, time.perf_counter() - last), time.perf_counter()
        await hashing
        return worst

    try:
        assert asyncio.run(longest_gap()) < 0.2
    finally:
        built.close()
