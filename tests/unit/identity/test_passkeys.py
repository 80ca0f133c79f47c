"""Passkeys: what is taken from an authenticator, and what an untrue one gets."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.security.authenticator import SoftAuthenticator, decode, encode
from tests.unit.identity.second_factors import ADA, BEN, World, run, world
from uait_server_ext.errors import (
    Conflict,
    DependencyMissing,
    FlowInvalid,
    InvalidInput,
    Unauthenticated,
)
from uait_server_ext.identity.tables import login_flows, passkeys

ORIGIN = "https://lab.example:8443"
BROWSER = "browser-1"
NAMES = {ADA: ("ada", "Ada"), BEN: ("ben", "Ben")}


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as built:
        yield built


@pytest.fixture
def device() -> SoftAuthenticator:
    return SoftAuthenticator(ORIGIN)


def options_to_add(parts: World, user: str = ADA) -> dict[str, Any]:
    return run(parts.passkeys.options_to_add(user, *NAMES[user], ORIGIN, BROWSER))


def add(parts: World, device: SoftAuthenticator, user: str = ADA) -> None:
    answer = device.create(options_to_add(parts, user))
    run(parts.passkeys.add(user, "Phone", answer, ORIGIN, BROWSER))


def options(parts: World, user: str | None = None) -> dict[str, Any]:
    return run(parts.passkeys.options_to_log_in(ORIGIN, BROWSER, user))


def log_in(parts: World, answer: dict[str, Any], browser: str | None = BROWSER) -> str:
    return run(parts.passkeys.log_in(answer, ORIGIN, browser))


def test_a_passkey_logs_its_user_in_without_a_name(parts: World, device: SoftAuthenticator) -> None:
    add(parts, device)
    offered = options(parts)
    assert offered["allowCredentials"] == []
    assert offered["userVerification"] == "required"
    assert offered["rpId"] == "lab.example"
    assert log_in(parts, device.get(offered)) == ADA
    assert log_in(parts, device.get(options(parts, ADA))) == ADA
    assert parts.events.named("login.passkey") == ["ok", "ok"]
    assert parts.events.named("factor.add") == ["ok"]


def test_the_options_name_the_passkeys_that_are_known(
    parts: World, device: SoftAuthenticator
) -> None:
    add(parts, device)
    again = options_to_add(parts)
    assert [one["id"] for one in again["excludeCredentials"]] == [encode(device.credential_id)]
    assert again["authenticatorSelection"]["residentKey"] == "required"
    with pytest.raises(Conflict):
        run(parts.passkeys.add(ADA, "Twice", device.create(again), ORIGIN, BROWSER))


def test_a_new_passkey_ends_what_its_user_holds(parts: World, device: SoftAuthenticator) -> None:
    before = parts.standing(ADA).epoch
    generation = run(parts.database.generation("identity"))
    add(parts, device)
    assert parts.standing(ADA).epoch == before + 1
    assert run(parts.database.generation("identity")) > generation


@pytest.mark.parametrize(
    "wrong",
    [{"origin": "https://evil.example"}, {"rp_id": "evil.example"}, {"verifies": False}],
    ids=str,
)
def test_an_untrue_new_passkey_is_refused(
    parts: World, device: SoftAuthenticator, wrong: dict[str, Any]
) -> None:
    answer = replace(device, **wrong).create(options_to_add(parts))
    with pytest.raises(Unauthenticated):
        run(parts.passkeys.add(ADA, "Phone", answer, ORIGIN, BROWSER))
    with pytest.raises(FlowInvalid):
        run(parts.passkeys.add(ADA, "Phone", answer, ORIGIN, BROWSER))
    assert parts.database.read_now(lambda c: c.execute(select(passkeys)).all()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://lab.example:8443"},
        {"rp_id": "evil.example"},
        {"verifies": False},
        {"user_handle": b"usr_ben"},
        {"credential_id": b"unknown"},
        {"key": SoftAuthenticator("").key},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_untrue_answer_is_refused_and_its_challenge_spent(
    parts: World, device: SoftAuthenticator, wrong: dict[str, Any]
) -> None:
    add(parts, device)
    offered = options(parts)
    with pytest.raises(Unauthenticated):
        log_in(parts, replace(device, **wrong).get(offered))
    with pytest.raises(FlowInvalid):
        log_in(parts, device.get(offered))
    assert parts.events.named("login.passkey") == ["refused", "refused"]


def test_a_counter_that_goes_back_is_refused(parts: World, device: SoftAuthenticator) -> None:
    add(parts, device)
    copy = replace(device)
    assert log_in(parts, device.get(options(parts))) == ADA
    with pytest.raises(Unauthenticated):
        log_in(parts, copy.get(options(parts)))


def test_an_authenticator_that_does_not_count_is_taken(parts: World) -> None:
    device = SoftAuthenticator(ORIGIN)
    add(parts, device)
    for _ in range(2):
        device.count = -1
        assert log_in(parts, device.get(options(parts))) == ADA


def test_a_challenge_is_good_once_for_five_minutes_in_one_browser(
    parts: World, device: SoftAuthenticator
) -> None:
    add(parts, device)
    answer = device.get(options(parts))
    for other in ("browser-2", None, ""):
        with pytest.raises(FlowInvalid):
            log_in(parts, answer, other)
    assert log_in(parts, answer) == ADA
    with pytest.raises(FlowInvalid):
        log_in(parts, answer)
    late = device.get(options(parts))
    parts.later(301)
    with pytest.raises(Unauthenticated):
        log_in(parts, late)


def test_a_challenge_of_one_ceremony_does_not_serve_the_other(
    parts: World, device: SoftAuthenticator
) -> None:
    add(parts, device)
    with pytest.raises(FlowInvalid):
        log_in(parts, device.get(options_to_add(parts)))
    with pytest.raises(FlowInvalid):
        run(parts.passkeys.add(ADA, "x", device.create(begun_login(parts)), ORIGIN, BROWSER))


def begun_login(parts: World) -> dict[str, Any]:
    offered = options(parts)
    return offered | {"rp": {"id": "lab.example"}, "user": {"id": encode(ADA.encode())}}


def test_a_user_cannot_end_anothers_ceremony(parts: World, device: SoftAuthenticator) -> None:
    answer = device.create(options_to_add(parts, ADA))
    with pytest.raises(FlowInvalid):
        run(parts.passkeys.add(BEN, "Mine now", answer, ORIGIN, BROWSER))


def test_a_second_factor_is_the_same_users(parts: World, device: SoftAuthenticator) -> None:
    add(parts, device, BEN)
    with pytest.raises(Unauthenticated):
        log_in(parts, device.get(options(parts, ADA)))


def test_the_challenge_is_stored_as_a_hash(parts: World) -> None:
    challenge = options(parts)["challenge"]
    stored = parts.database.read_now(lambda c: repr(c.execute(select(login_flows)).all()))
    assert challenge not in stored
    assert BROWSER not in stored
    assert len(decode(challenge)) >= 32


@pytest.mark.parametrize(
    "credential",
    [
        {},
        {"response": None},
        {"response": {"clientDataJSON": 3}},
        {"response": {"clientDataJSON": "!"}},
        {"response": {"clientDataJSON": encode(b"[]")}},
        {"response": {"clientDataJSON": encode(b'{"challenge": 1}')}},
        {"response": {"clientDataJSON": encode(b'{"challenge": "\\ud800"}')}},
        {"response": {"clientDataJSON": encode(b'{"challenge": "x", "crossOrigin": true}')}},
        {"response": {"clientDataJSON": encode(b"[" * 6000)}},
        {"response": {"clientDataJSON": "A" * 100_000}},
    ],
    ids=lambda credential: str(credential)[:60],
)
def test_what_is_no_credential_is_refused(parts: World, credential: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        log_in(parts, credential)


@pytest.mark.parametrize(
    ("origin", "available"),
    [
        ("https://lab.example", True),
        ("http://localhost:8888", True),
        ("http://lab.localhost", True),
        ("http://lab.example", False),
        ("http://127.0.0.1:8888", False),
        ("https://10.0.0.1", False),
        ("https://[::1]:8888", False),
        ("", False),
    ],
)
def test_browsers_make_passkeys_for_names_and_safe_origins(
    parts: World, origin: str, available: bool
) -> None:
    assert parts.passkeys.available(origin) is available
    if not available:
        with pytest.raises(InvalidInput):
            run(parts.passkeys.options_to_log_in(origin, BROWSER))


def test_a_missing_library_is_named(parts: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "webauthn":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyMissing, match=r"uait\[passkeys\]"):
        options(parts)
