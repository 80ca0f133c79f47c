"""Second factors of a person: what is required, what locks, what removing one entails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest

from tests.security.authenticator import SoftAuthenticator
from tests.unit.identity.second_factors import ADA, BEN, World, run, world
from uait_server_ext.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    TooManyAttempts,
    Unauthenticated,
)

ORIGIN = "https://lab.example"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, required_roles=("admin",)) as built:
        yield built


def enrol(parts: World, user: str = BEN) -> tuple[pyotp.TOTP, list[str]]:
    begun = run(parts.factors.begin_totp(user, "name", "Phone"))
    app = pyotp.TOTP(begun.secret)
    codes = run(parts.factors.confirm_totp(user, begun.id, app.at(parts.time)))
    parts.later(60)
    return app, codes


def add_passkey(parts: World, user: str = BEN) -> None:
    device = SoftAuthenticator(ORIGIN)
    options = run(parts.passkeys.options_to_add(user, "name", "Name", ORIGIN, "b"))
    run(parts.passkeys.add(user, "Phone", device.create(options), ORIGIN, "b"))


def test_a_role_may_require_a_second_factor(parts: World) -> None:
    assert parts.factors.required(parts.standing(ADA))
    assert not parts.factors.required(parts.standing(BEN))
    assert run(parts.factors.methods(ADA)) == ()


def test_a_required_role_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="admins"), world(tmp_path, required_roles=("admins",)):
        pass


def test_the_methods_are_what_is_enrolled(parts: World) -> None:
    add_passkey(parts)
    assert run(parts.factors.methods(BEN)) == ("passkey",)
    assert len(run(parts.factors.first_recovery_codes(BEN))) == 10
    assert run(parts.factors.first_recovery_codes(BEN)) == []
    enrol(parts)
    assert run(parts.factors.methods(BEN)) == ("totp", "passkey", "recovery")
    overview = run(parts.factors.overview(parts.standing(BEN)))
    assert [one.name for one in overview.totp] == ["Phone"]
    assert len(overview.passkeys) == 1
    assert overview.recovery_codes_left == 10
    assert not overview.required


def test_recovery_codes_come_with_the_first_factor_only(parts: World) -> None:
    _, codes = enrol(parts)
    assert len(codes) == 10
    assert enrol(parts)[1] == []


def test_wrong_codes_lock_for_a_while_and_only_this_user(parts: World) -> None:
    app, _ = enrol(parts)
    other, _ = enrol(parts, ADA)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            run(parts.factors.check_code(BEN, "000000"))
    with pytest.raises(TooManyAttempts) as locked:
        run(parts.factors.check_code(BEN, app.at(parts.time)))
    assert 0 < locked.value.extensions["retry_after"] <= 900
    with pytest.raises(TooManyAttempts):
        run(parts.factors.check_recovery(BEN, "aaaa"))
    run(parts.factors.check_code(ADA, other.at(parts.time)))
    parts.later(901)
    run(parts.factors.check_code(BEN, app.at(parts.time)))
    assert parts.events.named("login.totp") == ["refused"] * 5 + ["ok", "ok"]


def test_a_right_code_clears_the_count(parts: World) -> None:
    app, _ = enrol(parts)
    for _ in range(3):
        for _ in range(4):
            with pytest.raises(Unauthenticated):
                run(parts.factors.check_code(BEN, "000000"))
        run(parts.factors.check_code(BEN, app.at(parts.time)))
        parts.later(60)


def test_a_change_of_factors_ends_what_the_user_holds(parts: World) -> None:
    epochs = [parts.standing(BEN).epoch]
    enrol(parts)
    epochs.append(parts.standing(BEN).epoch)
    run(parts.factors.renew_recovery_codes(BEN))
    epochs.append(parts.standing(BEN).epoch)
    device = run(parts.factors.overview(parts.standing(BEN))).totp[0]
    run(parts.factors.remove(parts.standing(BEN), device.id))
    epochs.append(parts.standing(BEN).epoch)
    assert epochs == [0, 1, 2, 3]


def test_with_the_last_factor_go_the_recovery_codes(parts: World) -> None:
    _, codes = enrol(parts)
    device = run(parts.factors.overview(parts.standing(BEN))).totp[0]
    with pytest.raises(NotFound):
        run(parts.factors.remove(parts.standing(ADA), device.id))
    run(parts.factors.remove(parts.standing(BEN), device.id))
    assert run(parts.factors.methods(BEN)) == ()
    with pytest.raises(Unauthenticated):
        run(parts.factors.check_recovery(BEN, codes[0]))
    with pytest.raises(NotFound):
        run(parts.factors.remove(parts.standing(BEN), device.id))


def test_a_required_last_factor_stays(parts: World) -> None:
    enrol(parts, ADA)
    device = run(parts.factors.overview(parts.standing(ADA))).totp[0]
    with pytest.raises(Conflict, match="requires"):
        run(parts.factors.remove(parts.standing(ADA), device.id))
    assert run(parts.factors.methods(ADA)) == ("totp", "recovery")
    add_passkey(parts, ADA)
    run(parts.factors.remove(parts.standing(ADA), device.id))
    assert run(parts.factors.methods(ADA)) == ("passkey", "recovery")


def test_an_administrator_removes_all_that_a_person_lost(parts: World) -> None:
    enrol(parts)
    add_passkey(parts)
    run(parts.factors.remove_all(BEN, by=ADA))
    assert run(parts.factors.methods(BEN)) == ()
    assert parts.seals.values == {}
    assert parts.events.all[-1].principal == ADA
    assert parts.events.all[-1].target == BEN


def test_recovery_codes_need_a_factor(parts: World) -> None:
    with pytest.raises(Conflict):
        run(parts.factors.renew_recovery_codes(BEN))
    assert run(parts.factors.first_recovery_codes(BEN)) == []
