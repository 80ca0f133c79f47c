"""Somebody with a browser of their own at a server with UAIT's login, and what it complains of."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import pyotp
from playwright.sync_api import Browser, BrowserContext, Locator, Page, ViewportSize, expect
from sqlalchemy import Connection, update

from tests.security import conftest as security
from tests.security.conftest import IdentityServer
from tests.ui.pictures import picture
from uait_server_ext.identity.tables import sessions
from uait_server_ext.storage.database import raise_generation

PASSWORD = "correct horse battery staple"
NAME = "Ada Lovelace"
STEP_SECONDS = 30
VIEW = ViewportSize(width=1100, height=800)
# JupyterLab's page takes tokens out of its address by a script of its own. UAIT takes none there,
# so the policy may stop it; it is the one violation that is allowed.
TOKEN_SCRIPT = re.compile(r"<script>(/\* Remove token from URL\..*?)</script>", re.DOTALL)

Theme = Literal["light", "dark"]

expect.set_options(timeout=30_000)


class Person:
    """What a person does in one browser, and what the browser complained of."""

    def __init__(
        self,
        browser: Browser,
        server: IdentityServer,
        theme: Theme = "light",
        providers: tuple[str, ...] = (),
    ) -> None:
        # Browsers make passkeys for names, not for addresses; providers know the address.
        self.base = server.url if providers else server.url.replace("127.0.0.1", "localhost")
        self.providers = providers
        self.context: BrowserContext = browser.new_context(viewport=VIEW, color_scheme=theme)
        self.page: Page = self.context.new_page()
        self.violations: list[str] = []
        self.failures: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self.hear(message.text))
        self.page.on("pageerror", lambda error: self.failures.append(str(error)))
        self.page.on("request", lambda request: self.see(request.url))
        self.app: pyotp.TOTP | None = None
        self.used = 0

    @property
    def is_away(self) -> bool:
        """Whether the browser is at an identity provider, whose pages are none of ours."""
        return bool(self.providers) and self.page.url.startswith(self.providers)

    def hear(self, text: str) -> None:
        if "Content Security Policy" in text and not self.is_away:
            self.violations.append(text)

    def see(self, url: str) -> None:
        known = (self.base, "data:", "blob:", *self.providers)
        if not url.startswith(known) and not self.is_away:
            self.foreign.append(url)

    def open(self, path: str) -> None:
        self.page.goto(self.base + path)

    def set_up(self, secret: str) -> None:
        """Follow the link that the server printed, and make the first account."""
        self.open(f"uait/setup#secret={secret}")
        expect(self.page).to_have_url(re.compile("/uait/setup$"))  # the secret has gone from it
        self.page.get_by_label("User name").fill("ada")
        self.page.get_by_label("Your name").fill(NAME)
        self.page.get_by_label("New password").fill(PASSWORD)
        self.page.get_by_label("The same password again").fill(PASSWORD)
        self.button("Create account").click()

    def log_in(self, password: str = PASSWORD, name: str = "ada") -> None:
        """Type user name and password, with the keyboard only."""
        expect(self.page.get_by_label("User name")).to_be_focused()
        self.page.keyboard.type(name)
        self.page.keyboard.press("Tab")
        self.page.keyboard.type(password)
        self.page.keyboard.press("Enter")

    def log_out(self) -> None:
        self.open("logout")
        self.button("Log out").click()
        expect(self.page).to_have_url(re.compile("/login$"))

    def enrol_app(self) -> list[str]:
        """Add an authenticator app on the account page; return the recovery codes."""
        self.button("Add app").click()
        expect(self.page.locator("#qr")).to_be_visible()
        assert self.page.locator("#qr").evaluate("image => image.naturalWidth") > 100
        self.picture("totp")
        self.app = pyotp.TOTP(self.page.locator("#totp-secret").inner_text())
        self.page.get_by_label("The code that the app shows now").fill(self.code())
        self.button("Confirm").click()
        expect(self.page.locator("#code-list li")).to_have_count(10)
        return self.page.locator("#code-list li").all_inner_texts()

    def code(self) -> str:
        """Return a code that was not used yet: of this step, or else of the next."""
        assert self.app
        now = int(self.page.evaluate("Date.now() / 1000"))
        self.used = max(now // STEP_SECONDS, self.used + 1)
        return self.app.at(self.used * STEP_SECONDS)

    def add_authenticator(self) -> None:
        """Plug a virtual passkey device into the browser."""
        session = self.context.new_cdp_session(self.page)
        session.send("WebAuthn.enable")
        options = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
        }
        session.send("WebAuthn.addVirtualAuthenticator", {"options": options})

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def picture(self, name: str) -> None:
        picture(self.page, f"identity-{name}")

    def allowed(self) -> str:
        """Return the hash of JupyterLab's script that the policy stops."""
        script = TOKEN_SCRIPT.search(self.page.request.get(f"{self.base}lab").text())
        return (
            base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
            if script
            else "-"
        )


@contextmanager
def person(
    browser: Browser,
    server: IdentityServer,
    theme: Theme = "light",
    providers: tuple[str, ...] = (),
) -> Iterator[Person]:
    """Give somebody a browser of their own; it must have nothing to complain of at the end."""
    someone = Person(browser, server, theme, providers)
    try:
        yield someone
        stopped = someone.allowed()
        assert [text for text in someone.violations if stopped not in text] == []
        assert someone.failures == []
        assert someone.foreign == []
    except BaseException:
        someone.picture("failed")
        raise
    finally:
        someone.context.close()


def user_maker(server: IdentityServer) -> Callable[..., security.Person]:
    """Return a function that makes accounts; Playwright's loop runs in this thread all along."""
    make = security.user_maker(server)

    def in_a_thread(*roles: str, username: str) -> security.Person:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(make, *roles, username=username).result()

    return in_a_thread


def age_sessions(server: IdentityServer) -> None:
    """Let every login be long ago."""

    def work(connection: Connection) -> None:
        connection.execute(update(sessions).values(authenticated_at=1.0))
        raise_generation(connection, "identity")

    server.foundation.database.write_now(work)
