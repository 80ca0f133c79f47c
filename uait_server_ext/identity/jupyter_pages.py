"""UAIT's own pages: login, second factor, set-up links, account, device. HTML from `pages/`.

A page is a shell: everything it does is a public operation, called by its script with `fetch`. It
runs under a policy without inline script or style and loads nothing from elsewhere. The secret of
a one-time link is behind the `#` of its address, which no browser sends to a server.
"""

from __future__ import annotations

import mimetypes
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from .jupyter_provider import UaitIdentityProvider, UaitUser
from .next_url import local_path

FOLDER = Path(__file__).parent / "pages"
MODULES = "application/javascript"
FILES = r"([a-z-]+\.(?:js|css))"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # the QR code
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


@cache
def templates() -> Environment:
    """Return the templates; every value is escaped."""
    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)


class Page(JupyterHandler):
    """A page of UAIT. A subclass says which one, and who may see it."""

    @property
    def content_security_policy(self) -> str:
        return POLICY

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    @property
    def next(self) -> str:
        """Where to go from here: a path of this server, JupyterLab's where none is asked for."""
        asked = self.get_query_argument("next", "")
        default = str(self.settings.get("default_url") or self.base_url)
        return local_path(asked or default, self.base_url)

    def show(self, name: str, **values: Any) -> None:
        """Send a page; also sets the cookie that its script proves its requests with."""
        _ = self.xsrf_token
        page = templates().get_template(f"{name}.html")
        user = self.current_user
        self.finish(
            page.render(
                base_url=self.base_url,
                next=self.next,
                logo=self.static_url("logo/logo.png"),
                person=user.display_name if isinstance(user, UaitUser) else None,
                **values,
            )
        )

    def go(self, path: str, **query: str) -> None:
        """Send the browser to another page of this server."""
        self.redirect(f"{self.base_url}{path}" + (f"?{urlencode(query)}" if query else ""))

    def get_login_url(self) -> str:
        return f"{self.base_url}login"


def problem_page(problem: dict[str, Any], base_url: str) -> str:
    """Return a problem document as a page, for a browser that was sent to an operation."""
    return templates().get_template("problem.html").render(problem=problem, base_url=base_url)


class LoginPage(Page):
    """User name and password, passkeys, and other providers."""

    @allow_unauthenticated
    def get(self) -> None:
        """Show the login, or go on where somebody is logged in."""
        user = self.current_user
        if not isinstance(user, UaitUser):
            self.show("login")
        elif user.principal.may("lab:read"):
            self.redirect(self.next)
        else:
            self.go("uait/account")


class LogoutPage(Page):
    """Ask whether to log out: a GET that did it would let any other site log people out."""

    @allow_unauthenticated
    def get(self) -> None:
        """Show the question."""
        if isinstance(self.current_user, UaitUser):
            self.show("logout")
        else:
            self.go("login")


class LinkPage(Page):
    """What a one-time link opens: first set-up, an invitation, a password reset."""

    def initialize(self, purpose: str) -> None:
        self.purpose = purpose

    @allow_unauthenticated
    def get(self) -> None:
        """Show the form; the secret is in the fragment, and only the script sees it."""
        self.show("link", purpose=self.purpose)


class SecondFactorPage(Page):
    """The second step of a login."""

    @allow_unauthenticated
    async def get(self) -> None:
        """Offer the ways that the person of this browser's pending session has."""
        provider = self.identity_provider
        assert isinstance(provider, UaitIdentityProvider)
        identity = provider.identity
        session = await identity.sessions.find(provider.session_secret(self) or "")
        if session is None:
            self.go("login", next=self.next)
        elif not session.pending:
            self.redirect(self.next)
        else:
            self.show("second-factor", methods=await identity.factors.methods(session.user_id))


class AccountPage(Page):
    """Profile, password, second factors, sessions, keys, linked accounts."""

    @web.authenticated
    def get(self) -> None:
        """Show the account of who is logged in."""
        self.show("account", must_enrol=not self.current_user.principal.may("lab:read"))


class DevicePage(Page):
    """Where a person lets a command line in (RFC 8628)."""

    @web.authenticated
    def get(self) -> None:
        """Ask for the code; one in the fragment is filled in by the script."""
        self.show("device")


class PageFile(Page):
    """The pages' scripts and style."""

    @allow_unauthenticated
    def get(self, name: str) -> None:
        """Send a file of the pages' folder; the pattern lets no other path through."""
        file = FOLDER / name
        if not file.is_file():
            raise web.HTTPError(404)
        self.set_header("Content-Type", mimetypes.guess_type(name)[0] or MODULES)
        self.set_header("Cache-Control", "no-cache")  # asked for each time, by its ETag
        self.finish(file.read_bytes())


def pages() -> list[tuple[str, type[Page], dict[str, Any]]]:
    """Return the pages below the base URL, but for those that the identity provider serves."""
    return [
        (r"/uait/setup", LinkPage, {"purpose": "setup"}),
        (r"/uait/invitation", LinkPage, {"purpose": "invitation"}),
        (r"/uait/password-reset", LinkPage, {"purpose": "password-reset"}),
        (r"/uait/second-factor", SecondFactorPage, {}),
        (r"/uait/account", AccountPage, {}),
        (r"/uait/device", DevicePage, {}),
        (rf"/uait/pages/{FILES}", PageFile, {}),
    ]
