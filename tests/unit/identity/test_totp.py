"""Time-based codes: which are taken, when, and how often."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tests.unit.identity.second_factors import ADA, BEN, World, world
from uait_server_ext.errors import Conflict, InvalidInput, NotFound
from uait_server_ext.identity.factor_models import TotpEnrolment
from uait_server_ext.identity.tables import totp_devices
from uait_server_ext.identity.totp import MAX_DEVICES, STEP_SECONDS, qr_svg


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as built:
        yield built


def begin(parts: World, user: str = ADA) -> TotpEnrolment:
    return parts.write(lambda c: parts.factors.totp.enrol(c, user, "ada", "Phone"))


def enrol(parts: World, user: str = ADA) -> pyotp.TOTP:
    begun = begin(parts, user)
    app = pyotp.TOTP(begun.secret)
    code = app.at(parts.time)
    parts.write(lambda c: parts.factors.totp.confirm(c, user, begun.id, code))
    parts.later(2 * STEP_SECONDS)
    return app


def check(parts: World, code: str, user: str = ADA) -> bool:
    return parts.write(lambda c: parts.factors.totp.check(c, user, code))


def test_a_device_counts_only_once_a_code_confirmed_it(parts: World) -> None:
    begun = begin(parts)
    app = pyotp.TOTP(begun.secret)
    assert not check(parts, app.at(parts.time))
    with pytest.raises(InvalidInput, match="clocks"):
        parts.write(lambda c: parts.factors.totp.confirm(c, ADA, begun.id, "000000"))
    parts.write(lambda c: parts.factors.totp.confirm(c, ADA, begun.id, app.at(parts.time)))
    assert not check(parts, app.at(parts.time)), "the confirming code was used"
    parts.later(STEP_SECONDS)
    assert check(parts, app.at(parts.time))


def test_another_user_cannot_confirm_or_remove_a_device(parts: World) -> None:
    begun = begin(parts)
    code = pyotp.TOTP(begun.secret).at(parts.time)
    with pytest.raises(NotFound):
        parts.write(lambda c: parts.factors.totp.confirm(c, BEN, begun.id, code))
    assert not parts.write(lambda c: parts.factors.totp.remove(c, BEN, begun.id))


def test_a_device_that_waits_too_long_is_begun_again(parts: World) -> None:
    begun = begin(parts)
    parts.later(16 * 60)
    code = pyotp.TOTP(begun.secret).at(parts.time)
    with pytest.raises(NotFound, match="Begin again"):
        parts.write(lambda c: parts.factors.totp.confirm(c, ADA, begun.id, code))
    begin(parts)
    assert list(parts.seals.values) != [f"totp:{begun.id}"], "the old seed is gone"
    assert len(parts.seals.values) == 1


def test_a_code_is_good_once(parts: World) -> None:
    app = enrol(parts)
    code = app.at(parts.time)
    assert check(parts, code)
    assert not check(parts, code)
    assert not check(parts, app.at(parts.time - STEP_SECONDS)), "nor is an earlier one after it"
    parts.later(STEP_SECONDS)
    assert check(parts, app.at(parts.time))


@pytest.mark.parametrize(
    ("steps", "taken"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)]
)
def test_a_clock_may_be_one_step_off(parts: World, steps: int, taken: bool) -> None:
    app = enrol(parts)
    parts.later(10 * STEP_SECONDS)
    assert check(parts, app.at(parts.time + steps * STEP_SECONDS)) is taken


@pytest.mark.parametrize(
    "code", ["", "12345", "1234567", "abcdef", "١٢٣٤٥٦", "12345\n", "0" * 9999]
)
def test_what_is_no_code_is_refused(parts: World, code: str) -> None:
    enrol(parts)
    assert not check(parts, code)


def test_spaces_in_a_code_do_not_matter(parts: World) -> None:
    app = enrol(parts)
    code = app.at(parts.time)
    assert check(parts, f"{code[:3]} {code[3:]} ")


def test_any_of_two_devices_serves(parts: World) -> None:
    first, second = enrol(parts), enrol(parts)
    assert check(parts, first.at(parts.time))
    assert check(parts, second.at(parts.time))


def test_a_users_code_does_not_serve_another(parts: World) -> None:
    app = enrol(parts)
    enrol(parts, BEN)
    assert not check(parts, app.at(parts.time), BEN)


def test_there_is_a_limit_to_devices(parts: World) -> None:
    for _ in range(MAX_DEVICES):
        enrol(parts)
    with pytest.raises(Conflict, match="Remove one"):
        begin(parts)


def test_the_table_does_not_hold_the_seed(parts: World) -> None:
    begun = begin(parts)
    rows = parts.write(lambda c: [tuple(row) for row in c.execute(select(totp_devices))])
    assert begun.secret not in repr(rows)
    assert begun.secret not in repr(begun)
    assert parts.seals.values[f"totp:{begun.id}"] == begun.secret.encode()


def test_removing_a_device_removes_its_seed(parts: World) -> None:
    enrol(parts)
    device = parts.write(lambda c: parts.factors.totp.devices(c, ADA))[0]
    assert parts.write(lambda c: parts.factors.totp.remove(c, ADA, device.id))
    assert parts.seals.values == {}


def test_the_uri_and_its_picture(parts: World) -> None:
    uri = urlsplit(begin(parts).uri)
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert parse_qs(uri.query)["issuer"] == ["UAIT"]
    picture = ElementTree.fromstring(qr_svg(uri.geturl()))
    assert picture.tag.endswith("svg")
    assert picture.findall(".//{http://www.w3.org/2000/svg}path")


@settings(max_examples=15, deadline=None)  # each begins with a database of its own
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_accepted_steps_only_go_up(
    tmp_path_factory: pytest.TempPathFactory, drifts: list[int]
) -> None:
    with world(tmp_path_factory.mktemp("totp")) as parts:
        app = enrol(parts)
        taken = []
        for drift in drifts:
            at = parts.time + drift * STEP_SECONDS
            if check(parts, app.at(at)):
                taken.append(at // STEP_SECONDS)
        assert taken == sorted(set(taken))
