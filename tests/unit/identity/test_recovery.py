"""Recovery codes: good once, each; kept as hashes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.unit.identity.second_factors import ADA, BEN, World, world
from uait_server_ext.identity.recovery import CODES, RecoveryCodes, digest
from uait_server_ext.identity.tables import recovery_codes


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as built:
        yield built


@pytest.fixture
def recovery(parts: World) -> RecoveryCodes:
    return parts.factors.recovery


def test_ten_codes_of_eighty_bits(parts: World, recovery: RecoveryCodes) -> None:
    codes = parts.write(lambda c: recovery.renew(c, ADA))
    assert len(set(codes)) == CODES == 10
    assert all(re.fullmatch(r"([a-z2-7]{4}-){3}[a-z2-7]{4}", code) for code in codes)


def test_each_is_good_once_however_it_is_typed(parts: World, recovery: RecoveryCodes) -> None:
    code = parts.write(lambda c: recovery.renew(c, ADA))[3]
    assert not parts.write(lambda c: recovery.use(c, BEN, code)), "it is Ada's"
    typed = f" {code.upper().replace('-', ' ')} "
    assert parts.write(lambda c: recovery.use(c, ADA, typed))
    assert not parts.write(lambda c: recovery.use(c, ADA, code))
    assert parts.write(lambda c: recovery.left(c, ADA)) == CODES - 1


def test_new_codes_void_the_old_ones(parts: World, recovery: RecoveryCodes) -> None:
    old = parts.write(lambda c: recovery.renew(c, ADA))
    parts.write(lambda c: recovery.renew(c, ADA))
    assert not parts.write(lambda c: recovery.use(c, ADA, old[0]))


def test_only_hashes_are_kept(parts: World, recovery: RecoveryCodes) -> None:
    codes = parts.write(lambda c: recovery.renew(c, ADA))
    stored = parts.write(lambda c: c.scalars(select(recovery_codes.c.code_sha256)).all())
    assert set(stored) == {digest(code) for code in codes}
    kept = b"".join(
        path.read_bytes() for path in Path(str(parts.database.url.database)).parent.iterdir()
    )
    assert not any(
        code.encode() in kept or code.replace("-", "").encode() in kept for code in codes
    )


def test_of_two_at_once_one_wins(parts: World, recovery: RecoveryCodes) -> None:
    code = parts.write(lambda c: recovery.renew(c, ADA))[0]
    with ThreadPoolExecutor(8) as pool:
        used = list(
            pool.map(lambda _: parts.write(lambda c: recovery.use(c, ADA, code)), range(16))
        )
    assert used.count(True) == 1


@pytest.mark.parametrize("code", ["", "-", "\ud800", "a" * 100_000, "0000-0000-0000-0000"])
def test_what_is_no_code_is_refused(parts: World, recovery: RecoveryCodes, code: str) -> None:
    parts.write(lambda c: recovery.renew(c, ADA))
    assert not parts.write(lambda c: recovery.use(c, ADA, code))
