"""Addresses as people have them, and tokens that keep to themselves."""

from __future__ import annotations

import copy
import pickle

import pytest

from uait_kernel.endpoint import Token, parse_address
from uait_kernel.errors import UsageMistake


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8888", "http://127.0.0.1:8888/"),
        ("http://127.0.0.1:8888/", "http://127.0.0.1:8888/"),
        (" HTTP://LocalHost:8888/user/ann ", "http://localhost:8888/user/ann/"),
        ("http://localhost:8888/lab?token=abc", "http://localhost:8888/"),
        ("http://localhost:8888/user/ann/tree/", "http://localhost:8888/user/ann/"),
        ("https://uait.example/team/", "https://uait.example:443/team/"),
        ("http://[::1]:8888/", "http://[::1]:8888/"),
        ("http://0.0.0.0:8888/", "http://127.0.0.1:8888/"),
        ("http://[::]:8888/", "http://[::1]:8888/"),
    ],
)
def test_addresses_are_read_as_people_have_them(given: str, url: str) -> None:
    endpoint, _ = parse_address(given)
    assert endpoint.url == url
    assert parse_address(endpoint.url)[0] == endpoint


def test_the_token_of_a_link_is_taken() -> None:
    _, token = parse_address("http://localhost:8888/lab?token=abc&reset")
    assert token.headers() == {"Authorization": "token abc"}


@pytest.mark.parametrize(
    "given",
    [
        "",
        "localhost:8888",
        "ftp://host/",
        "http://",
        "http://host:port/",
        "http://host:99999/",
        "http+unix://%2Frun%2Fsock/",
        "http://[::1/",
        "http://ann:pw-secret@host/",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(UsageMistake) as caught:
        parse_address(given)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://localhost:1/", "http://127.0.0.1:1/", True),
        ("http://[::1]:1/", "http://localhost:1/", True),
        ("http://127.0.0.1:1/a/", "http://127.0.0.1:1/", False),
        ("http://127.0.0.1:1/", "https://127.0.0.1:1/", False),
        ("http://127.0.0.1:1/", "http://127.0.0.1:2/", False),
        ("http://host:1/", "http://127.0.0.1:1/", False),
    ],
)
def test_loopback_names_are_one_server(one: str, other: str, same: bool) -> None:
    assert parse_address(one)[0].same_server(parse_address(other)[0]) is same


def test_path_segments_cannot_leave_their_place() -> None:
    endpoint, _ = parse_address("http://host/base")
    assert endpoint.path("collections", "a/../b c?d") == "/base/collections/a%2F..%2Fb%20c%3Fd"


def test_a_token_neither_prints_nor_pickles_itself() -> None:
    token = Token("s3cret")
    assert "s3cret" not in f"{token} {token!r} {[token]}"
    assert not hasattr(token, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(token)
    with pytest.raises(TypeError):
        copy.deepcopy(token)


@pytest.mark.parametrize("value", ["a b", "a\nInjected: header", "tökén"])
def test_a_token_that_would_break_a_header_is_refused_unseen(value: str) -> None:
    with pytest.raises(UsageMistake) as caught:
        Token(value)
    assert value not in str(caught.value)
