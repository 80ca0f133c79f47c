"""Bounds on what the wire may carry."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.api.parsing import (
    MAX_DEPTH,
    check_content,
    check_path,
    parse_json,
    parse_query,
)
from uait_server_ext.errors import InvalidInput, UnsupportedMediaType

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\u00e9", max_size=3), inner),
)


@given(VALUES, st.booleans())
def test_what_is_within_the_bounds_is_read_as_it_is(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        value = parse_json(body)
    except InvalidInput:
        return
    assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b"1" * 10_000,
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":"x\\u0000"}',
        b'{"a":"x\0"}',
        b'{"a":1,"a":2}',
        b'{"b":{"a":1,"\\u0061":2}}',
        b'{"a":"\xed\xa0\x80"}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"{'a':1}",
        b"{} {}",
        b"",
    ],
    ids=lambda body: repr(body[:16]),
)
def test_what_is_beyond_them_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_json(body)
    assert len(caught.value.detail) < 300


def test_nesting_up_to_the_bound_is_read() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'["\\ud83d\\ude00"]') == ["😀"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/jsonx"},
        {},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_another_kind_of_body_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_content(headers, b"{}")


def test_json_passes_and_no_body_needs_no_type() -> None:
    check_content({"Content-Type": "application/json"}, b"{}")
    check_content({"Content-Type": 'Application/JSON; charset="UTF-8"'}, b"{}")
    check_content({"Content-Type": "application/json", "Content-Encoding": "identity"}, b"{}")
    check_content({}, b"")


def test_query_and_path_are_checked_alike() -> None:
    assert parse_query({"q": ["é".encode()]}) == {"q": ["é"]}
    for arguments in (
        {"q": [b"a", b"b"]},
        {"q": [b"\xff"]},
        {"q": [b"\0"]},
        {"q\0": [b"a"]},
        {str(number): [b"1"] for number in range(51)},
    ):
        with pytest.raises(InvalidInput):
            parse_query(arguments)
    check_path({"collection": "docs"})
    with pytest.raises(InvalidInput, match="collection"):
        check_path({"collection": "do\0cs"})
