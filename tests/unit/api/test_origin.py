"""Requests that another web site makes a browser send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.api.origin import refuse_cross_site, same_site
from uait_server_ext.errors import PermissionDenied

HOST = "lab.example.com:8888"
OWN = f"https://{HOST}"


def passes(method: str, **headers: str) -> bool:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        refuse_cross_site(method, sent, HOST)
    except PermissionDenied:
        return False
    return True


def test_our_own_pages_and_programs_pass() -> None:
    for method in ("GET", "POST"):
        assert passes(method)
        assert passes(method, Origin=OWN, Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")
        assert passes(method, Sec_Fetch_Site="none", Sec_Fetch_Mode="navigate")
        assert passes(method, Origin="HTTPS://LAB.example.com:8888")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://lab.example.com",
        "https://lab.example.com:8889",
        "https://lab.example.com:8888.evil.example",
        "https://evil.example/lab.example.com:8888",
        "https://lab.example.com:8888@evil.example",
        "ftp://lab.example.com:8888",
        "null",
        "",
        "file://",
        "https://[",
    ],
)
def test_another_origin_is_refused_whatever_the_method(origin: str) -> None:
    assert not passes("POST", Origin=origin)
    assert not passes("GET", Origin=origin)
    # What the browser says of itself does not outweigh the origin.
    assert not passes("POST", Origin=origin, Sec_Fetch_Site="same-origin")


def test_fetch_metadata_alone_refuses() -> None:
    assert not passes("POST", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")
    assert not passes("POST", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="cors")
    assert not passes("POST", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert not passes("POST", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors")
    assert not passes("GET", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")
    # A followed link: how an OpenID provider sends people back.
    assert passes("GET", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")


def test_default_ports_are_the_same_origin() -> None:
    assert same_site("https://lab.example.com:443", "lab.example.com")
    assert same_site("http://lab.example.com", "lab.example.com:80")
    assert not same_site("http://lab.example.com:443", "lab.example.com")
    assert not same_site("https://lab.example.com", "")


@given(st.text(max_size=40))
def test_only_our_origin_passes(origin: str) -> None:
    if origin.lower() not in (OWN, OWN.replace("https", "http")):
        assert not passes("POST", Origin=origin)
