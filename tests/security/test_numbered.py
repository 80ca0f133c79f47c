"""Each numbered case has a test, or a reason why it has none."""

from __future__ import annotations

from tests.security.cases import REASONS, cases, proofs

NUMBERS = set(range(1, 104)) - {79}


def test_the_cases_are_the_numbers_of_the_specification() -> None:
    assert set(cases()) == NUMBERS


def test_every_case_is_proved_or_has_a_reason() -> None:
    proved = set(proofs())
    assert not sorted(NUMBERS - proved - set(REASONS)), "neither a test nor a reason"


def test_no_reason_outlives_its_cause() -> None:
    assert not sorted(set(REASONS) & set(proofs())), "has a test now: take the reason away"


def test_no_test_has_a_number_that_is_not_a_case() -> None:
    assert not sorted(set(proofs()) - NUMBERS)
