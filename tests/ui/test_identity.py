"""People in a real browser: set-up link, second factors, passkeys, and JupyterLab behind them.

Runs under the strict content security policy; a page that breaks it, or whose script fails, fails
its test.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.security.conftest import IdentityServer, identity_server
from tests.ui.people import Person, age_sessions, person

pytestmark = pytest.mark.slow

LOAD_MS = 60_000


@pytest.fixture(scope="module")
def folder(jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity-ui")


def test_from_the_set_up_link_to_a_running_cell(browser: Browser, folder: Path) -> None:
    with identity_server(folder / "first") as server, person(browser, server) as ada:
        page = ada.page
        assert server.setup_secret
        ada.open("lab")
        expect(page.get_by_text("Nobody has an account yet")).to_be_visible()
        ada.set_up(server.setup_secret)
        expect(page).to_have_url(re.compile("/lab"))
        assert server.setup_secret not in server.logged().rpartition("#secret=")[0]
        assert (
            server.setup_secret
            not in server.logged().partition(f"#secret={server.setup_secret}")[2]
        )

        ada.open("uait/account")
        expect(page.locator("#username")).to_have_text("ada")
        ada.picture("account")
        codes = ada.enrol_app()
        ada.picture("recovery-codes")
        assert not any(code in server.logged() for code in codes)

        ada.log_out()
        ada.open("lab")
        expect(page).to_have_url(re.compile("/login"))
        ada.log_in("wrong password entirely")
        expect(page.get_by_role("alert").first).to_contain_text("wrong")
        ada.picture("login-refused")
        page.reload()
        ada.log_in()
        expect(page.get_by_label("Code of your authenticator app")).to_be_focused()
        ada.picture("second-factor")
        page.keyboard.type("000000")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("wrong")
        page.keyboard.type(ada.code())
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile("/lab"))

        ada.add_authenticator()
        ada.open("uait/account")
        ada.button("Add passkey").click()
        expect(page.locator("#factor-list li")).to_have_count(2)
        ada.button("Add passkey").click()  # the device has one: the browser makes no second
        expect(page.locator("#add-passkey").get_by_role("alert")).to_contain_text("already")
        ada.log_out()
        ada.open("lab")
        ada.button("Log in with a passkey").click()
        run_a_cell(ada)


def run_a_cell(ada: Person) -> None:
    """Start a notebook in JupyterLab and let Python reckon."""
    page = ada.page
    splash = page.locator("#jupyterlab-splash")
    expect(page).to_have_url(re.compile("/lab"))
    splash.wait_for(state="attached", timeout=LOAD_MS)
    splash.wait_for(state="detached", timeout=LOAD_MS)
    page.locator('.jp-LauncherCard[data-category="Notebook"]').first.click()
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    cell.click(timeout=LOAD_MS)
    # JupyterLab runs nothing, and says nothing, before the notebook has its kernel.
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=LOAD_MS)
    page.keyboard.type("print(6 * 7 * 1000)")
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".jp-OutputArea-output").first).to_have_text("42000\n", timeout=LOAD_MS)
    assert page.evaluate("document.cookie").find("session") == -1
    assert page.evaluate("Object.values(localStorage).join().includes('uaits_')") is False
    ada.picture("lab")


def test_an_account_that_needs_a_second_factor(browser: Browser, folder: Path) -> None:
    required = "--UaitApp.second_factor_required_roles=admin"
    with (
        identity_server(folder / "second", required) as server,
        person(browser, server, "dark") as ada,
    ):
        page = ada.page
        assert server.setup_secret
        ada.set_up(server.setup_secret)
        expect(page.get_by_text("Your role needs a second factor")).to_be_visible()
        ada.picture("must-enrol-dark")
        assert page.request.get(f"{ada.base}lab").status == 403
        assert page.request.get(f"{ada.base}uait/v1/users").status == 403
        ada.enrol_app()
        ada.page.get_by_role("link", name="Go on", exact=True).click()
        expect(page.locator("#username")).to_have_text("ada")
        assert page.request.get(f"{ada.base}uait/v1/users").ok

        make_and_revoke_a_key(ada)
        refuse_to_remove_the_last(ada)
        codes = prove_again(ada, server)
        let_a_device_in(ada)
        let_in_and_end(ada, browser, server, codes)


def make_and_revoke_a_key(ada: Person) -> None:
    """Make an API key on the account page, use it, revoke it."""
    page = ada.page
    page.get_by_label("Name", exact=True).fill("script")
    page.get_by_label("models:read").check()
    ada.button("Make key").click()
    key = page.locator("#key-secret")
    expect(key).to_be_visible()
    headers = {"Authorization": f"Bearer {key.inner_text()}"}
    models = f"{ada.base}uait/v1/models"
    assert page.request.get(models, headers=headers).ok
    page.get_by_role("button", name=re.compile("^Revoke: script")).click()
    expect(page.locator("#key-list li")).to_have_count(0)
    assert page.request.get(models, headers=headers).status == 401


def refuse_to_remove_the_last(ada: Person) -> None:
    """Try to take away the one factor that the role requires."""
    page = ada.page
    page.get_by_role("button", name="Remove: Phone").click()
    expect(page.locator("#renew-codes").get_by_role("alert")).to_contain_text("requires")


def prove_again(ada: Person, server: IdentityServer) -> list[str]:
    """Renew the recovery codes long after the login: a fresh proof is asked for first."""
    age_sessions(server)
    page = ada.page
    ada.button("New recovery codes").click()
    dialog = page.get_by_role("dialog", name="Is it still you?")
    expect(dialog.get_by_label("Code of your authenticator app")).to_be_focused()
    ada.picture("prove-dark")
    page.keyboard.press("Escape")
    expect(page.locator("#renew-codes").get_by_role("alert")).to_contain_text("Nothing was done")
    ada.button("New recovery codes").click()
    expect(dialog.get_by_label("Code of your authenticator app")).to_be_focused()
    page.keyboard.type("000000")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("wrong")
    dialog.get_by_label("Code of your authenticator app").fill(ada.code())
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#code-list li")).to_have_count(10)
    return page.locator("#code-list li").all_inner_texts()


def let_a_device_in(ada: Person) -> None:
    """Approve the code that a command line shows."""
    page = ada.page
    asked = page.request.post(f"{ada.base}uait/v1/device", data={"client": "uait on nereid"})
    codes = asked.json()
    page.goto(codes["verification_uri_complete"].replace("127.0.0.1", "localhost"))
    expect(page).to_have_url(re.compile("/uait/device$"))
    expect(page.get_by_label("Code", exact=True)).to_have_value(codes["user_code"])
    ada.button("Look it up").click()
    expect(page.locator("#client")).to_have_text("uait on nereid")
    ada.picture("device-dark")
    ada.button("Approve").click()
    expect(page.get_by_role("status")).to_contain_text("It is logged in")
    grant = {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": codes["device_code"],
    }
    token = page.request.post(f"{ada.base}uait/v1/token", data=grant).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert page.request.get(f"{ada.base}uait/v1/models", headers=headers).ok
    ada.open("uait/account")
    page.get_by_role("button", name="Log out: uait on nereid").click()
    expect(page.locator("#device-list li")).to_have_count(0)


def let_in_and_end(ada: Person, browser: Browser, server: IdentityServer, codes: list[str]) -> None:
    """Log in elsewhere with a recovery code, and end that login from here."""
    with person(browser, server) as elsewhere:
        elsewhere.open("login?next=//evil.example")
        elsewhere.log_in()
        elsewhere.page.get_by_text("I have lost my device").click()
        elsewhere.page.get_by_label("A recovery code").fill(codes[0].upper())
        elsewhere.page.locator("[data-method=recovery] button").click()
        expect(elsewhere.page).to_have_url(re.compile(f"^{re.escape(elsewhere.base)}(lab|$)"))
        elsewhere.open("uait/account")
        expect(elsewhere.page.locator("#session-list li")).to_have_count(2)
        ada.page.reload()
        expect(ada.page.locator("#codes-left")).to_contain_text("9 recovery codes")
        ada.picture("account-dark")
        ada.page.locator("#session-list").get_by_role("button").click()
        expect(ada.page.locator("#session-list li")).to_have_count(1)
        elsewhere.open("uait/account")
        expect(elsewhere.page).to_have_url(re.compile("/login"))
