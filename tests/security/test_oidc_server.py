"""Logins through providers over a running `uait lab`: cookies, redirects, statuses, the log."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import psutil
import pytest

from tests.security import evil_idp
from tests.security.conftest import Api, IdentityServer, Person, identity_server, user_maker
from tests.security.real_idp import CLIENT_ID, CLIENT_SECRET, log_in_there, real_provider

CALLBACK = "uait/v1/login/oidc/real/callback"


@pytest.fixture(scope="module")
def evil() -> Iterator[evil_idp.EvilProvider]:
    provider = evil_idp.EvilProvider().start()
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    evil: evil_idp.EvilProvider,
) -> Iterator[IdentityServer]:
    """Run a server with a good provider and an evil one."""
    folder = tmp_path_factory.mktemp("oidc")
    with real_provider(f"http://127.0.0.1/{CALLBACK}") as issuer:
        providers = [
            {
                "id": "real",
                "name": "Real",
                "issuer": issuer,
                "client_id": CLIENT_ID,
                "client_secret_ref": "env:REAL_CLIENT_SECRET",
                "auto_create": "analyst",
                "email_domains": ["example.org"],
                "allow_insecure": True,
            },
            {
                "id": "evil",
                "name": "Evil",
                "issuer": evil.url,
                "client_id": evil_idp.CLIENT_ID,
                "allow_insecure": True,
            },
        ]
        configuration = folder / "jupyter_config.py"
        generous = {"login": {"ip": 10_000, "user": 10_000}}
        configuration.write_text(
            f"c.UaitApp.oidc_providers = {providers!r}\nc.UaitApp.rate_limits = {generous!r}\n",
            encoding="utf-8",
        )
        with identity_server(
            folder,
            f"--config={configuration}",
            environment={"REAL_CLIENT_SECRET": CLIENT_SECRET},
        ) as running:
            user_maker(running)("admin", username="root")
            yield running


@pytest.fixture(scope="module")
def make(server: IdentityServer) -> Callable[..., Person]:
    return user_maker(server)


def begin(browser: Api, provider: str = "real", next_url: str | None = None) -> str:
    """Follow the link of the login page; return where the browser is sent."""
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    answer = browser.get(f"~/login/oidc/{provider}{query}")
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"]


def come_back(browser: Api, query: dict[str, str], provider: str = "real") -> httpx.Response:
    """Follow the provider's redirect, as a browser that comes from another site."""
    return browser.get(
        f"~/login/oidc/{provider}/callback",
        params=query,
        headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    )


def said(answer: httpx.Response) -> dict[str, str]:
    """Return what the page of a refused login says to whom it may help: a person got a page."""
    assert answer.headers["Content-Type"].startswith("text/html")
    return dict(re.findall(r'data-(code|reason)="([^"]*)"', answer.text))


def log_in(server: IdentityServer, name: str) -> tuple[Api, httpx.Response]:
    """Log somebody in through the real provider."""
    browser = server.browser()
    address, query = log_in_there(begin(browser, next_url="/lab/tree/a"), name)
    assert address == f"{server.url}{CALLBACK}"
    return browser, come_back(browser, query)


def test_029_login_through_a_provider(server: IdentityServer) -> None:
    browser, answer = log_in(server, "ada")
    assert answer.status_code == 302, answer.text
    assert answer.headers["Location"] == "/lab/tree/a"
    me = browser.get("~/me").json()
    assert (me["username"], me["roles"], me["email"]) == ("ada", ["analyst"], "ada@example.org")
    assert me["has_password"] is False
    accounts = browser.get("~/me/accounts").json()["accounts"]
    assert [(one["provider"], one["label"]) for one in accounts] == [("real", "ada@example.org")]
    methods = server.browser().get("~/login/methods").json()
    assert {"id": "real", "name": "Real"} in methods["providers"]


def test_051_cookies_of_a_provider_login(server: IdentityServer) -> None:
    browser = server.browser()
    answer = browser.get("~/login/oidc/real")
    [binding] = [c for c in answer.headers.get_list("Set-Cookie") if "browser" in c]
    _, query = log_in_there(answer.headers["Location"], "ada")
    answer = come_back(browser, query)
    [session] = [c for c in answer.headers.get_list("Set-Cookie") if "-session" in c]
    for cookie in (binding, session):
        assert "httponly" in cookie.lower()
        assert "samesite=lax" in cookie.lower()


@pytest.mark.parametrize("query", [{}, {"state": "x", "code": "y"}, {"error": "access_denied"}])
def test_018_callback_with_unknown_state_is_refused(
    server: IdentityServer, query: dict[str, str]
) -> None:
    answer = come_back(server.browser(), query)
    assert answer.status_code == 400
    assert said(answer)["code"] == "flow-invalid"
    assert "-session" not in str(answer.headers)


def test_019_callback_replayed_is_refused(server: IdentityServer) -> None:
    browser = server.browser()
    _, query = log_in_there(begin(browser), "ada")
    assert come_back(browser, query).status_code == 302
    assert come_back(browser, query).status_code == 400


def test_020_state_of_another_browser_is_refused(server: IdentityServer) -> None:
    mallory, victim = server.browser(), server.browser()
    begin(victim)
    _, query = log_in_there(begin(mallory), "mallory")
    assert come_back(victim, query).status_code == 400
    assert victim.get("~/me").status_code in (401, 403)


def test_021_unknown_parameters_are_ignored_and_a_wrong_issuer_is_not(
    server: IdentityServer,
) -> None:
    browser = server.browser()
    _, query = log_in_there(begin(browser), "ada")
    assert come_back(browser, query | {"session_state": "x", "hd": "y"}).status_code == 302
    _, query = log_in_there(begin(browser), "ada")
    answer = come_back(browser, query | {"iss": "https://accounts.example.net"})
    assert (answer.status_code, said(answer)["reason"]) == (400, "issuer")


def test_024_wrong_nonce_is_refused(server: IdentityServer, evil: evil_idp.EvilProvider) -> None:
    evil.reset()
    evil.does.claims = lambda claims: claims | {"nonce": "wrong"}
    browser = server.browser()
    answer = come_back(browser, evil.authorize(begin(browser, "evil")), "evil")
    assert (answer.status_code, said(answer)["reason"]) == (400, "nonce")


def test_026_unknown_account_is_refused(
    server: IdentityServer, evil: evil_idp.EvilProvider
) -> None:
    evil.reset()
    browser = server.browser()
    answer = come_back(browser, evil.authorize(begin(browser, "evil")), "evil")
    assert (answer.status_code, said(answer)["reason"]) == (403, "unknown-account")


@pytest.mark.parametrize(
    "target", ["//evil.example", "/\\evil.example", "https:evil", "%2f%2fevil"]
)
def test_030_browser_stays_here(server: IdentityServer, target: str) -> None:
    browser = server.browser()
    _, query = log_in_there(begin(browser, next_url=target), "ada")
    assert come_back(browser, query).headers["Location"] == "/"


def test_031_provider_down_leaves_other_logins(
    server: IdentityServer, evil: evil_idp.EvilProvider, make: Callable[..., Person]
) -> None:
    evil.reset()
    browser = server.browser()
    query = evil.authorize(begin(browser, "evil"))
    evil.does.status = {"token": 500}
    answer = come_back(browser, query, "evil")
    assert answer.status_code == 503
    assert said(answer)["code"] == "provider-unavailable"
    assert server.login(make("viewer")).get("~/me").status_code == 200
    assert log_in(server, "ada")[1].status_code == 302


def test_012_second_factor_is_asked_after_a_provider_login(server: IdentityServer) -> None:
    browser, _ = log_in(server, "twice")
    identity = server.identity
    user = browser.get("~/me").json()
    enrolment = asyncio.run(identity.factors.begin_totp(user["id"], user["username"], "phone"))
    import pyotp

    code = pyotp.TOTP(enrolment.secret).now()
    asyncio.run(identity.factors.confirm_totp(user["id"], enrolment.id, code))
    browser, answer = log_in(server, "twice")
    location = urlsplit(answer.headers["Location"])
    assert location.path == "/uait/second-factor"
    assert parse_qs(location.query) == {"next": ["/lab/tree/a"]}
    assert browser.get("~/me").status_code == 401


def test_026_account_is_linked_by_its_owner_and_unlinked(
    server: IdentityServer, make: Callable[..., Person]
) -> None:
    person = make("viewer")
    browser = server.login(person)
    url = browser.post("~/me/accounts/real/link").json()["url"]
    _, query = log_in_there(url, "linker")
    answer = come_back(browser, query)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/uait/account")
    other, _ = log_in(server, "linker")
    assert other.get("~/me").json()["username"] == person.username
    assert browser.delete("~/me/accounts/real").status_code == 204
    assert browser.get("~/me/accounts").json() == {"accounts": []}
    assert other.get("~/me").status_code == 401
    assert browser.delete("~/me/accounts/real").status_code == 404


def test_026_other_site_cannot_begin_a_link(
    server: IdentityServer, make: Callable[..., Person]
) -> None:
    browser = server.login(make("viewer"))
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert browser.get("~/me/accounts/real/link", headers=navigation).status_code == 405
    foreign = {"Origin": "https://evil.example"}
    assert browser.post("~/me/accounts/real/link", headers=foreign).status_code in (403, 404)
    assert server.anonymous().post("~/me/accounts/real/link").status_code in (401, 403)


def test_026_only_way_to_log_in_is_not_unlinked(server: IdentityServer) -> None:
    browser, _ = log_in(server, "only")
    assert browser.delete("~/me/accounts/real").status_code == 409


def test_089_secrets_of_a_login_are_in_no_log(server: IdentityServer) -> None:
    browser = server.browser()
    _, query = log_in_there(begin(browser), "ada")
    come_back(browser, query)
    come_back(browser, query)
    logged = server.logged()
    for secret in (CLIENT_SECRET, query["code"], query["state"]):
        assert secret not in logged
    events: list[Any] = []

    async def read() -> None:
        async for line in server.foundation.audit.export():
            events.append(json.loads(line))

    asyncio.run(read())
    logins = [event for event in events if event["action"] == "login.oidc"]
    assert {event["outcome"] for event in logins} >= {"ok", "refused"}
    assert any(event["target"] == "real" for event in logins)
    written = json.dumps(events)
    for secret in (CLIENT_SECRET, query["code"], query["state"]):
        assert secret not in written


def test_100_client_secret_is_not_inherited(
    server: IdentityServer, make: Callable[..., Person]
) -> None:
    """The variable is gone for every process that the server starts."""
    browser = server.login(make("developer"))
    assert browser.post("/api/terminals").status_code == 200
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    for child in children:
        assert "REAL_CLIENT_SECRET" not in child.environ()
