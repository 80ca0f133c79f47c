"""Audit events: what others typed can neither forge a line nor fill the log."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from uait_server_ext.events.record import AuditEvent, canonical, clean, link


def test_line_ends_and_control_characters_are_escaped() -> None:
    event = AuditEvent(
        action="login.password",
        outcome="refused",
        principal="ada\r\n2026-01-01 root logged in",
        target="a\x00b\x1b[31mc\u2028d\u202ee\ud800",
        detail={"agent": "x\ny", "na\nme": 1, "on": True},
    )
    assert event.principal == "ada\\r\\n2026-01-01 root logged in"
    assert event.target == "a\\x00b\\x1b[31mc\\u2028d\\u202ee\\ud800"
    assert event.detail == {"agent": "x\\ny", "na\\nme": 1, "on": True}


def test_long_texts_are_cut_and_many_details_dropped() -> None:
    event = AuditEvent(
        action="login.password",
        outcome="refused",
        principal="\n" * 1_000_000,
        detail={f"k{n}": "v" * 10_000 for n in range(100)},
    )
    assert event.principal is not None
    assert len(event.principal) == 120
    assert event.principal.endswith("…")
    assert len(event.detail) == 20
    assert len(canonical(event.detail)) < 12_000


@pytest.mark.parametrize("action", ["", "Login", "a b", "a..b", ".a", "a\n", "x" * 65])
def test_an_action_is_a_fixed_word_of_the_program(action: str) -> None:
    with pytest.raises(ValidationError):
        AuditEvent(action=action, outcome="ok")


def test_whole_numbers_and_truths_keep_their_type() -> None:
    detail = AuditEvent(action="a", outcome="ok", detail={"n": 1, "t": True, "s": "1"}).detail
    assert json.loads(canonical(detail)) == {"n": 1, "s": "1", "t": True}
    assert canonical(detail) == '{"n":1,"s":"1","t":true}'


@given(text=st.text(st.characters(), max_size=300), limit=st.integers(2, 200))
def test_cleaned_text_prints_on_one_line_within_its_limit(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert cleaned.isprintable()
    assert len(cleaned.splitlines()) <= 1
    cleaned.encode()


@given(st.lists(st.text(max_size=5), min_size=2, max_size=4, unique=True))
def test_a_link_depends_on_every_field_and_the_key(fields: list[str]) -> None:
    first = link(b"k", "0", tuple(fields))
    assert first != link(b"l", "0", tuple(fields))
    assert first != link(b"k", "1", tuple(fields))
    assert first != link(b"k", "0", tuple(reversed(fields)))
    assert first != link(b"k", "0", (*fields, ""))
