"""The pages of the login: where they lead, what they may load, what they give away."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.security.conftest import Api, IdentityServer, Person

pytestmark = pytest.mark.slow

OPEN_PAGES = ("login", "uait/setup", "uait/invitation", "uait/password-reset")
CLOSED_PAGES = ("uait/account", "uait/device", "logout")
ELSEWHERE = [
    "//evil",
    "/\\evil",
    "https:evil",
    "https://evil",
    "///evil",
    "%2f%2fevil",
    "/%2fevil",
    "javascript:alert(1)",
    "/\t/evil",
    '"><script>alert(1)</script>',
]


def where_to(text: str) -> str:
    found = re.search(r'data-next="([^"]*)"', text)
    assert found
    return found[1]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_030_the_login_page_leads_nowhere_else(server: IdentityServer, target: str) -> None:
    page = server.anonymous().get("login", params={"next": target})
    assert where_to(page.text) == "/"
    assert "<script>" not in page.text


def test_030_the_login_page_leads_to_a_path_of_this_server(server: IdentityServer) -> None:
    page = server.anonymous().get("login", params={"next": "/lab/tree/a%20b.ipynb?reset"})
    assert where_to(page.text) == "/lab/tree/a%20b.ipynb?reset"


@pytest.mark.parametrize("target", ELSEWHERE)
def test_030_who_is_logged_in_is_sent_nowhere_else(
    server: IdentityServer, people: dict[str, Person], target: str
) -> None:
    client = server.anonymous()
    client.http.cookies.update(session(server, people["viewer"]))
    answer = client.get("login", params={"next": target})
    assert answer.status_code == 302
    assert answer.headers["Location"] in ("/", "/lab")


SESSIONS: dict[str, dict[str, str]] = {}


def session(server: IdentityServer, person: Person) -> dict[str, str]:
    """Log a person in once for all tests; return the browser's cookies."""
    if person.id not in SESSIONS:
        SESSIONS[person.id] = dict(server.login(person).http.cookies)
    return SESSIONS[person.id]


@pytest.mark.parametrize("path", [*OPEN_PAGES, *CLOSED_PAGES])
def test_068_a_page_runs_nothing_but_its_own_files(
    server: IdentityServer, people: dict[str, Person], path: str
) -> None:
    client = server.anonymous()
    if path in CLOSED_PAGES:
        client.http.cookies.update(session(server, people["viewer"]))
    page = client.get(path)
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", page.text)
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert source.startswith("/")
        assert client.get(source).status_code in (200, 302)
    assert people["viewer"].id not in page.text


@pytest.mark.parametrize("path", CLOSED_PAGES)
def test_054_a_closed_page_asks_for_a_login(server: IdentityServer, path: str) -> None:
    answer = server.anonymous().get(path)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/login")


@pytest.mark.parametrize(
    "name",
    [
        "../jupyter_pages.py",
        "..%2fjupyter_pages.py",
        "base.html",
        "x.js",
        "login.js%00",
        "pages.css/",
    ],
)
def test_054_no_other_file_is_served_with_the_pages(server: IdentityServer, name: str) -> None:
    assert server.anonymous().get(f"uait/pages/{name}").status_code in (302, 400, 403, 404)


def test_065_no_form_of_another_site_logs_in_or_out(
    server: IdentityServer, people: dict[str, Person], login: Callable[[Person], Api]
) -> None:
    person = people["viewer"]
    form = {"username": person.username, "password": person.password}
    stranger = server.anonymous()
    assert stranger.request("POST", "login", data=form).status_code in (403, 405)
    assert not any("session" in name for name in stranger.http.cookies)
    client = login(person)
    assert client.get("logout").status_code == 200  # it only asks
    assert client.get("~/me").status_code == 200
    assert client.http.post("logout").status_code in (403, 405)
    assert client.get("~/me").status_code == 200
