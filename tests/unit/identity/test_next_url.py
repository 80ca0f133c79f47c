"""Where a login may lead: never to another server."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uait_server_ext.identity.next_url import local_path

HERE = "https://here.example"
SEPARATORS = ["/", "\\", "//", ":", "@", "?", "#", "..", ".", *"\t\n\r\0 \u2028"]
ESCAPES = ["%2f", "%5c", "%2F%2f", "%09", "%0a"]
PIECES = st.sampled_from(
    [*SEPARATORS, *ESCAPES, "http:", "https:", "javascript:", "evil.example", "lab", "é"]
)


def as_browser(target: str) -> str:
    """Read a target as the URL standard says: tabs and line ends dropped, `\\` is `/`."""
    kept = "".join(c for c in target if c not in "\t\n\r").strip("".join(map(chr, range(0x21))))
    path, question, rest = kept.partition("?")
    return path.replace("\\", "/") + question + rest


@pytest.mark.parametrize(
    "target",
    ["/", "/lab", "/lab/tree/my%20file.ipynb?reset", "/lab?next=https://other.example", "/lab#x"],
)
def test_a_path_of_this_server_is_followed(target: str) -> None:
    assert local_path(target, "/") == target


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "//evil",
        "/\\evil",
        "\\\\evil",
        "https:evil",
        "https://evil",
        "///evil",
        "////evil",
        "%2f%2fevil",
        "/%2fevil",
        "/%5cevil",
        "javascript:alert(1)",
        "data:text/html,x",
        "/\tevil",
        "/\n/evil",
        "/%09/evil",
        "\x00/lab",
        " //evil",
        "lab",
        "evil.example/lab",
        "//[evil",
        "/" + "a" * 2000,
    ],
)
def test_anything_else_leads_to_the_base(target: str | None) -> None:
    assert local_path(target, "/") == "/"


@pytest.mark.parametrize(
    "target", ["/", "/lab", "/user/bob/", "/user/../other", "/user/ada/../bob"]
)
def test_a_path_outside_the_base_url_is_not_followed(target: str) -> None:
    assert local_path(target, "/user/ada/") == "/user/ada/"


@given(st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join))
@example("/.//evil")
@example("/lab/..//evil")
def test_no_target_leaves_the_server(target: str) -> None:
    chosen = local_path(target, "/")
    for reading in (chosen, as_browser(chosen)):
        reached = urlsplit(urljoin(f"{HERE}/login", reading))
        assert (reached.scheme, reached.netloc) == ("https", "here.example")
    assert "\\" not in chosen
    assert all(ord(c) >= 0x20 for c in chosen)
