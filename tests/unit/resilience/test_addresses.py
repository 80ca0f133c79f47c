"""Client addresses behind proxies, and where a URL may lead."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.errors import AddressRefused, Unavailable
from uait_server_ext.resilience.addresses import (
    Allowed,
    check_url,
    client_address,
    is_name,
    may_connect,
)

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


def check(url: str, allowed: Allowed | None = None, *addresses: str) -> tuple[str, int]:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    target = asyncio.run(check_url(url, allowed, resolver if addresses else None))
    return target.host, target.port


@pytest.mark.parametrize(
    ("peer", "lines", "expected"),
    [
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),  # no proxy of ours: its word is nothing
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.7"], "198.51.100.7"),  # the first is the client's own
        ("10.0.0.1", ["6.6.6.6", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:dead::1]:4711"], "2001:dead::1"),
        ("10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["6.6.6.6, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("2001:db8::5", ["198.51.100.7"], "198.51.100.7"),
    ],
)
def test_the_client_is_who_the_last_trusted_proxy_saw(
    peer: str, lines: list[str], expected: str
) -> None:
    assert client_address(peer, lines, PROXIES) == expected
    assert client_address(peer, lines, ()) == peer


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_header_gives_an_address(lines: list[str]) -> None:
    ip_address(client_address("10.0.0.1", lines, PROXIES))


def test_a_very_long_header_is_read_from_its_end_only() -> None:
    lines = [",".join(["10.0.0.2"] * 50_000)]
    assert client_address("10.0.0.1", lines, PROXIES) == "10.0.0.2"


def test_a_public_url_passes() -> None:
    assert check("https://api.example.org/v1?x=1", None, "93.184.216.34") == (
        "api.example.org",
        443,
    )
    assert check("http://[2606:4700::1111]:8080/") == ("2606:4700::1111", 8080)


def test_one_inner_address_among_public_ones_refuses_all() -> None:
    with pytest.raises(AddressRefused):
        check("https://example.org", None, "93.184.216.34", "10.0.0.1")


def test_a_name_without_address_says_so() -> None:
    async def nothing(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    with pytest.raises(Unavailable, match="cannot be found"):
        asyncio.run(check_url("https://nowhere.example", None, nothing))


def test_what_an_administrator_allows_passes_and_nothing_beside_it() -> None:
    allowed = Allowed.of(["127.0.0.1", "10.1.0.0/16", "Ollama.internal"])
    check("http://127.0.0.1:11434/v1", allowed)
    check("http://ollama.INTERNAL.:11434/v1", allowed, "192.168.7.7")
    check("http://a.example", allowed, "10.1.2.3")
    check("http://a.example", allowed, "::ffff:10.1.2.3")
    for url, address in (
        ("http://127.0.0.2", "127.0.0.2"),
        ("http://a.example", "10.2.0.1"),
        ("http://notollama.internal", "192.168.7.7"),
    ):
        with pytest.raises(AddressRefused):
            check(url, allowed, address)


def test_the_refusal_does_not_tell_the_inner_address() -> None:
    with pytest.raises(AddressRefused) as caught:
        check("https://intranet.example", None, "10.9.8.7")
    assert "10.9.8.7" not in caught.value.detail


def test_allowed_takes_names_and_networks_only() -> None:
    for entry in ("10.0.0.0/99", "http://x", "2130706433", "", "a b"):
        with pytest.raises(ValueError, match="neither"):
            Allowed.of([entry])


@given(st.integers(0, 2**32 - 1))
def test_an_inner_address_is_refused_in_every_dress(number: int) -> None:
    plain = ip_address(number)
    if not plain.is_private:
        return
    dresses = [
        plain,
        ip_address(0xFFFF << 32 | number),  # mapped
        ip_address((0x64 << 112) | (0xFF9B << 96) | number),  # NAT64
        ip_address((0x2002 << 112) | (number << 80)),  # 6to4
        ip_address((0x20010000 << 96) | (number ^ 0xFFFFFFFF)),  # Teredo
    ]
    for dress in dresses:
        assert not may_connect(str(dress)), dress


@given(st.text(alphabet="0123456789abcdefx.", max_size=30))
def test_a_number_in_disguise_is_no_name(host: str) -> None:
    if is_name(host):
        last = host.rstrip(".").rpartition(".")[2]
        assert not last.isdecimal()
        assert not last.startswith("0x") or not set(last[2:]) <= set("0123456789abcdef")


@given(st.text(max_size=80))
def test_any_text_is_refused_or_read(text: str) -> None:
    try:
        check("http" + text, None, "127.0.0.1")
    except (AddressRefused, Unavailable):
        return
    raise AssertionError("an inner address passed")
