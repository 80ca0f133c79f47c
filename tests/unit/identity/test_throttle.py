"""The lock-out: what it stops, what it lets pass, and that it ends."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.unit.identity.people import People, people, run
from uait_server_ext.errors import TooManyAttempts
from uait_server_ext.identity import throttle as module
from uait_server_ext.identity.tables import attempts, known_browsers
from uait_server_ext.identity.throttle import (
    ACCOUNT_FAILURES,
    ADDRESS_FAILURES,
    WINDOW_SECONDS,
    Throttle,
    address_subject,
)

STRANGER = "198.51.100.7"
BROWSER = "bind_" + "x" * 43


@pytest.fixture
def here(tmp_path: Path) -> Iterator[People]:
    with people(tmp_path) as built:
        built.add("ada")
        yield built


@pytest.fixture
def throttle(here: People) -> Throttle:
    return here.identity.throttle


def fail(throttle: Throttle, times: int, name: str = "ada", address: str = STRANGER) -> None:
    for _ in range(times):
        run(throttle.login(name, address, None))


def refused(throttle: Throttle, name: str = "ada", address: str = STRANGER) -> int:
    with pytest.raises(TooManyAttempts) as caught:
        run(throttle.login(name, address, None))
    assert caught.value.status == 429
    return int(caught.value.extensions["retry_after"])


def rows(here: People) -> int:
    return here.read(lambda c: c.scalar(select(func.count()).select_from(attempts))) or 0


def test_the_sixth_failure_waits_for_the_window(here: People, throttle: Throttle) -> None:
    fail(throttle, 3)
    here.later(60)
    fail(throttle, 2)
    assert refused(throttle) == WINDOW_SECONDS - 60
    assert refused(throttle, address="203.0.113.9")  # from wherever
    here.later(WINDOW_SECONDS - 60)
    fail(throttle, 1)  # the first three have left the window


def test_the_window_ends_however_often_one_tries(here: People, throttle: Throttle) -> None:
    fail(throttle, ACCOUNT_FAILURES)
    for _ in range(30):
        refused(throttle)
        here.later(WINDOW_SECONDS / 30)
    fail(throttle, 1)


@pytest.mark.parametrize("name", ["ada", "nobody", "not a name", "x" * 5000, "\ud800", "a\0b"])
def test_known_and_unknown_names_are_treated_alike(throttle: Throttle, name: str) -> None:
    fail(throttle, ACCOUNT_FAILURES, name)
    assert refused(throttle, name) == WINDOW_SECONDS


def test_spellings_of_a_name_share_their_failures(throttle: Throttle) -> None:
    for name in ("ada", "ADA", "Ada", "ａda", "aDa"):
        fail(throttle, 1, name)
    refused(throttle, "adA")


def test_attempts_at_once_are_all_counted(throttle: Throttle) -> None:
    async def at_once() -> list[object]:
        return await asyncio.gather(
            *(throttle.login("ada", STRANGER, None) for _ in range(40)), return_exceptions=True
        )

    outcomes = run(at_once())
    assert sum(not isinstance(one, TooManyAttempts) for one in outcomes) == ACCOUNT_FAILURES


def test_a_success_forgets_the_accounts_failures(throttle: Throttle) -> None:
    fail(throttle, ACCOUNT_FAILURES - 1)
    run(throttle.succeeded(run(throttle.login("ada", STRANGER, None))))
    fail(throttle, ACCOUNT_FAILURES)


def test_an_undecided_attempt_does_not_count(throttle: Throttle) -> None:
    for _ in range(ACCOUNT_FAILURES * 2):
        run(throttle.withdraw(run(throttle.login("ada", STRANGER, None))))


def test_an_address_has_a_limit_over_all_accounts(throttle: Throttle) -> None:
    for number in range(ADDRESS_FAILURES):
        fail(throttle, 1, f"user{number}")
    refused(throttle, "another")
    fail(throttle, 1, "another", address="198.51.100.8")


def test_ones_own_success_does_not_wash_an_address(throttle: Throttle) -> None:
    for number in range(ADDRESS_FAILURES - 1):
        fail(throttle, 1, f"user{number}")
        run(throttle.succeeded(run(throttle.login("mine", STRANGER, None))))
    fail(throttle, 1, "last")
    refused(throttle, "mine")


def test_a_strangers_guesses_do_not_lock_the_owners_browser(
    here: People, throttle: Throttle
) -> None:
    here.write(lambda c: throttle.remember_browser(c, here.ids["ada"], BROWSER))
    fail(throttle, ACCOUNT_FAILURES)
    refused(throttle)
    for _ in range(ACCOUNT_FAILURES):
        run(throttle.login("ada", STRANGER, BROWSER))
    with pytest.raises(TooManyAttempts):
        run(throttle.login("ada", STRANGER, BROWSER))  # its own count


def test_a_browser_is_known_for_its_person_only(here: People, throttle: Throttle) -> None:
    ben = here.add("ben")
    here.write(lambda c: throttle.remember_browser(c, ben, BROWSER))
    fail(throttle, ACCOUNT_FAILURES)
    with pytest.raises(TooManyAttempts):
        run(throttle.login("ada", STRANGER, BROWSER))


def test_known_browsers_are_few_and_grow_old(here: People, throttle: Throttle) -> None:
    ada = here.ids["ada"]
    for number in range(module.BROWSERS_PER_USER + 5):
        here.later(1)
        remember = functools.partial(
            throttle.remember_browser, user_id=ada, binding=f"browser {number}"
        )
        here.write(remember)
    held = here.read(lambda c: c.scalar(select(func.count()).select_from(known_browsers)))
    assert held == module.BROWSERS_PER_USER
    here.write(lambda c: throttle.remember_browser(c, ada, BROWSER))
    here.later(module.BROWSER_SECONDS + 1)
    fail(throttle, ACCOUNT_FAILURES)
    with pytest.raises(TooManyAttempts):
        run(throttle.login("ada", STRANGER, BROWSER))


def test_the_table_does_not_grow(
    here: People, throttle: Throttle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(throttle, ACCOUNT_FAILURES)
    here.later(WINDOW_SECONDS)
    fail(throttle, 1, "other")
    assert rows(here) == 2
    monkeypatch.setattr(module, "MAX_ROWS", 10)
    for number in range(20):
        fail(throttle, 1, f"user{number}", address=f"192.0.2.{number}")
    assert rows(here) <= 12


@pytest.mark.parametrize(
    ("address", "subject"),
    [
        ("192.0.2.1", "ip:192.0.2.1"),
        ("::ffff:192.0.2.1", "ip:192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "ip:2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "ip:2001:db8:1:2::/64"),
        ("::1", "ip:::/64"),
        ("not an address" * 20, "ip:" + ("not an address" * 20)[:64]),
    ],
)
def test_an_ipv6_network_is_one_address(address: str, subject: str) -> None:
    assert address_subject(address) == subject
    assert len(subject) <= 120


def test_subjects_of_other_parts(here: People, throttle: Throttle) -> None:
    for _ in range(ACCOUNT_FAILURES):
        run(throttle.check("totp:usr_x"))
        run(throttle.failed("totp:usr_x"))
    with pytest.raises(TooManyAttempts):
        run(throttle.check("totp:usr_x"))
    run(throttle.passed("totp:usr_x"))
    run(throttle.check("totp:usr_x"))
    for _ in range(ACCOUNT_FAILURES):
        run(throttle.proof("usr_x"))
    with pytest.raises(TooManyAttempts):
        run(throttle.proof("usr_x"))
    for _ in range(ADDRESS_FAILURES):
        run(throttle.link(STRANGER))
    with pytest.raises(TooManyAttempts):
        run(throttle.link(STRANGER))
