"""Logins through an independent OpenID provider in a real browser, under the strict policy.

The provider is npm's `oidc-provider` with its own pages. Two of them run: at one everybody may
come in, at the other only whose account is linked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, expect

from tests.security import conftest as security
from tests.security.conftest import IdentityServer, identity_server
from tests.security.real_idp import CLIENT_ID, CLIENT_SECRET, real_provider
from tests.ui.people import Person, age_sessions, person, user_maker

pytestmark = pytest.mark.slow

OPEN, CLOSED = "The Club", "The Guild"
LOAD_MS = 60_000


@dataclass
class World:
    """A server with two providers."""

    server: IdentityServer
    issuers: tuple[str, str]
    make: Callable[..., security.Person]


@pytest.fixture(scope="module")
def world(
    jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("oidc-ui")
    callback = "http://127.0.0.1/uait/v1/login/oidc/{}/callback"
    with (
        real_provider(callback.format("club")) as club,
        real_provider(callback.format("guild")) as guild,
    ):
        common = {
            "client_id": CLIENT_ID,
            "client_secret_ref": "env:CLIENT_SECRET",
            "allow_insecure": True,
        }
        providers = [
            {"id": "club", "name": OPEN, "issuer": club, "auto_create": "analyst", **common},
            {"id": "guild", "name": CLOSED, "issuer": guild, **common},
        ]
        configuration = folder / "jupyter_config.py"
        generous = {"login": {"ip": 10_000, "user": 10_000}}
        configuration.write_text(
            f"c.UaitApp.oidc_providers = {providers!r}\nc.UaitApp.rate_limits = {generous!r}\n",
            encoding="utf-8",
        )
        with identity_server(
            folder, f"--config={configuration}", environment={"CLIENT_SECRET": CLIENT_SECRET}
        ) as server:
            make = user_maker(server)
            make("admin", username="root")
            yield World(server, (club, guild), make)


@pytest.fixture
def someone(browser: Browser, world: World) -> Iterator[Person]:
    with person(browser, world.server, providers=world.issuers) as anybody:
        yield anybody


def sign_in_there(someone: Person, name: str) -> None:
    """Log in and consent on the provider's own pages."""
    page = someone.page
    expect(page.get_by_placeholder("Enter any login")).to_be_visible()
    assert someone.is_away
    page.get_by_placeholder("Enter any login").fill(name)
    page.get_by_placeholder("and password").fill("any")
    someone.button("Sign-in").click()
    someone.button("Continue").click()


def follow(someone: Person, provider: str) -> None:
    """Choose a provider on the login page."""
    link = someone.page.get_by_role("link", name=f"Log in with {provider}", exact=True)
    expect(link).to_be_visible()
    link.click()


def in_the_lab(someone: Person) -> None:
    """Wait until JupyterLab is there."""
    splash = someone.page.locator("#jupyterlab-splash")
    expect(someone.page).to_have_url(re.compile("/lab"))
    splash.wait_for(state="attached", timeout=LOAD_MS)
    splash.wait_for(state="detached", timeout=LOAD_MS)
    expect(someone.page.locator("#jp-main-dock-panel")).to_be_visible()


def test_029_login_through_a_provider(someone: Person) -> None:
    page = someone.page
    someone.open("lab")
    expect(page.get_by_role("link", name=f"Log in with {CLOSED}", exact=True)).to_be_visible()
    someone.picture("provider-login")
    follow(someone, OPEN)
    sign_in_there(someone, "ada")
    in_the_lab(someone)
    someone.picture("provider-lab")
    assert "uaits_" not in page.evaluate("Object.values(localStorage).join() + document.cookie")
    someone.open("uait/account")
    expect(page.locator("#username")).to_have_text("ada")
    expect(page.locator("#account-list")).to_contain_text("ada@example.org")
    expect(page.get_by_label("Current password")).to_be_hidden()  # this person has none


def test_013_who_has_no_password_proves_it_at_the_provider(someone: Person, world: World) -> None:
    page = someone.page
    someone.open("uait/account")
    follow(someone, OPEN)
    sign_in_there(someone, "lin")
    expect(page.locator("#username")).to_have_text("lin")
    age_sessions(world.server)
    someone.button("Add app").click()
    dialog = page.get_by_role("dialog", name="Is it still you?")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Password")).to_be_hidden()
    someone.picture("provider-prove")
    dialog.get_by_role("link", name=f"Log in with {OPEN} again").click()
    someone.button("Continue").click()
    expect(page.locator("#username")).to_have_text("lin")
    someone.button("Add app").click()
    expect(page.locator("#qr")).to_be_visible()


def test_026_account_is_linked_by_its_owner_and_unlinked(someone: Person, world: World) -> None:
    page = someone.page
    world.make("analyst", username="grace")
    someone.open("uait/account")
    someone.log_in(name="grace")
    someone.button(f"Link {CLOSED}").click()
    sign_in_there(someone, "hopper")
    expect(page).to_have_url(re.compile("/uait/account$"))
    expect(page.locator("#account-list li")).to_contain_text("hopper@example.org")
    expect(someone.button(f"Link {CLOSED}")).to_have_count(0)
    page.locator("#accounts").scroll_into_view_if_needed()
    someone.picture("provider-linked")

    someone.log_out()
    someone.open("uait/account")
    follow(someone, CLOSED)
    someone.button("Continue").click()  # it knows this browser
    expect(page.locator("#username")).to_have_text("grace")

    someone.button("Unlink: hopper@example.org").click()
    expect(someone.button(f"Link {CLOSED}")).to_be_visible()
    expect(page.locator("#account-list li")).to_have_count(0)
    someone.log_out()
    someone.open("lab")
    follow(someone, CLOSED)
    someone.button("Continue").click()
    refused(someone, "has this The Guild account", "unlinked")


def test_026_unknown_account_is_refused_with_a_page(someone: Person) -> None:
    someone.open("lab")
    follow(someone, CLOSED)
    sign_in_there(someone, "mallory")
    refused(someone, "Ask an administrator for an invitation", "unknown")
    someone.page.get_by_role("link", name="Back to the login").click()
    expect(someone.page.get_by_label("User name")).to_be_visible()
    assert someone.page.request.get(f"{someone.base}uait/v1/me").status == 401


def test_031_cancelled_login_is_a_page(someone: Person) -> None:
    someone.open("lab")
    follow(someone, OPEN)
    someone.page.get_by_text("Cancel").click()
    refused(someone, "did not log you in", "cancelled")


def test_031_browsers_without_fetch_metadata_get_the_page_too(world: World) -> None:
    """They send none to a server that they reach by plain http under another name."""
    anybody = world.server.anonymous()
    page = anybody.get("~/login/oidc/nobody", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.headers["Content-Type"].startswith("text/html")
    program = anybody.get("~/login/oidc/nobody")
    assert program.headers["Content-Type"] == "application/problem+json"
    assert (page.status_code, program.status_code) == (404, 404)


def refused(someone: Person, reason: str, name: str) -> None:
    """Expect a page that a person can read."""
    page = someone.page
    expect(page.get_by_role("alert")).to_contain_text(reason)
    expect(page.get_by_role("heading")).to_be_visible()
    assert page.evaluate("document.contentType") == "text/html"
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).borderRadius") != "0px"
    someone.picture(f"provider-{name}")
