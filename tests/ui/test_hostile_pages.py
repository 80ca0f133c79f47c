"""Hostile names and parameters on UAIT's own pages do nothing: cases 94 and 95.

Once under the pages' policy, and once in a browser that is told to ignore it: what keeps the text
harmless is how it is written into the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pyotp
import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import insert

from tests.security.conftest import IdentityServer, Person, identity_server
from tests.ui.hostile_corpus import Payload, acting, calling
from tests.ui.hostile_lab import seen
from tests.ui.inertness import Listener, Watch, assert_made_of_text, listener
from tests.ui.people import VIEW, user_maker
from tests.ui.pictures import picture
from uait_server_ext.errors import InvalidInput
from uait_server_ext.identity.names import display_name
from uait_server_ext.identity.tables import external_accounts

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

# As long as the name of a key, a provider or a factor may be, and not longer.
SHORT = (
    "<script>top.__uait_xss=[1]</script>",
    "<img src=uait-came-to-life onerror=top.__uait_xss=[2]>",
    "<svg><animate onbegin=top.__uait_xss=[3] attributeName=x dur=1s>",
    '"><img src=uait-came-to-life onerror=top.__uait_xss=[4]>',
    "' onmouseover='top.__uait_xss=[5]' x='",
    '" autofocus onfocus="top.__uait_xss=[6]',
    "javascript:top.__uait_xss=[7]",
    "<a href=javascript:top.__uait_xss=[8]>click</a>",
    "</li></ul></body><iframe src=javascript:top.__uait_xss=[9]>",
    "{{7*7}} ${7*7} <%= 7*7 %> {% raw %}",
    "&lt;script&gt;top.__uait_xss=[11]&lt;/script&gt;",
    "<style>*{display:none}</style><base href=//127.0.0.1:1/>",
)
ANYBODYS = (
    "login",
    "uait/setup",
    "uait/invitation",
    "uait/password-reset",
    "uait/second-factor",
    "uait/v1/login/oidc/evil",
    "uait/v1/login/oidc/evil/callback",
    "uait/v1/me",
)
ONES_OWN = ("logout", "uait/account", "uait/device", "uait/v1/login/oidc/evil/callback")
PARAMETERS = ("error", "error_description", "next", "message", "state", "code", "user_code")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Listener]:
    with listener() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    jupyter_folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[IdentityServer]:
    """Run a server whose provider has a hostile name, and does not answer."""
    folder = tmp_path_factory.mktemp("hostile-pages")
    provider = {
        "id": "evil",
        "name": SHORT[3],
        "issuer": "http://127.0.0.1:9",
        "client_id": SHORT[1],
        "allow_insecure": True,
    }
    configuration = folder / "jupyter_config.py"
    generous = {name: {"ip": 10_000, "user": 10_000} for name in ("login", "write")}
    configuration.write_text(
        f"c.UaitApp.oidc_providers = {[provider]!r}\nc.UaitApp.rate_limits = {generous!r}\n",
        encoding="utf-8",
    )
    with identity_server(folder, f"--config={configuration}") as running:
        user_maker(running)("admin", username="root")
        yield running


class Visitor:
    """Somebody who is logged in and watched; what their page asks for, they ask for too."""

    def __init__(self, page: Page, server: IdentityServer) -> None:
        self.page, self.base = page, server.url
        self.watch = Watch(page.context, server.url)

    def log_in(self, person: Person) -> None:
        self.page.goto(f"{self.base}login?{urlencode({'next': SHORT[6]})}")
        self.page.get_by_label("User name").fill(person.username)
        self.page.get_by_label("Password").fill(person.password)
        self.page.get_by_role("button", name="Log in", exact=True).click()
        expect(self.page).to_have_url(re.compile(f"^{re.escape(self.base)}(lab|$)"))
        self.page.wait_for_load_state()
        self.watch.violations.clear()  # JupyterLab's page has a script that the policy stops

    def call(self, method: str, path: str, body: object = None) -> int:
        """Call an operation with the page's own session; return the status."""
        cookies = self.page.context.cookies(self.base)
        xsrf = next(one.get("value", "") for one in cookies if one.get("name") == "_xsrf")
        answer = self.page.request.fetch(
            f"{self.base}uait/v1{path}", method=method, data=body, headers={"X-XSRFToken": xsrf}
        )
        return answer.status

    def open(self, path: str) -> None:
        """Open a page."""
        self.page.goto(self.base + path)

    def look(self, elsewhere: Listener) -> None:
        """Fail on whatever the page that is open has done, or is made of besides our elements."""
        self.page.evaluate("window.uaitStillHere = location.origin")
        self.page.wait_for_timeout(50)  # for what its script shows
        own = [
            link
            for link in self.page.evaluate(
                "Array.from(document.querySelectorAll('a'), link => link.getAttribute('href'))"
            )
            if link.startswith("/") and not link.startswith("//")
        ]
        assert_made_of_text(self.page.locator("body"), "page", *own)
        self.watch.assert_inert(self.page, elsewhere, settle_ms=50)


@pytest.fixture(params=["policy", "no policy"])
def visitor(
    request: pytest.FixtureRequest, browser: Browser, server: IdentityServer
) -> Iterator[Visitor]:
    context = browser.new_context(
        viewport=VIEW, bypass_csp=request.param == "no policy", user_agent=SHORT[1]
    )
    yield Visitor(context.new_page(), server)
    context.close()


def names_of_people() -> list[str]:
    """Return what of the corpus can be the name of a person."""
    found: list[Payload] = [*acting(), *calling("http://127.0.0.1:9")]
    names = [payload.text for payload in found]
    return [*SHORT, *list(filter(is_name, names))[::3]]


def is_name(text: str) -> bool:
    try:
        return display_name(text) == text
    except InvalidInput:
        return False


def test_094_names_of_people_are_inert(
    visitor: Visitor, server: IdentityServer, elsewhere: Listener, request: pytest.FixtureRequest
) -> None:
    person = user_maker(server)("analyst", username=f"named-{len(request.node.name)}")
    visitor.log_in(person)
    names = names_of_people()
    assert len(names) > 30
    page = visitor.page
    for name in names:
        assert visitor.call("PATCH", "/me", {"display_name": name}) == 200
        visitor.open("uait/account")
        expect(page.get_by_label("Name that others see")).to_have_value(name)
        assert seen(page.locator("header nav span").inner_text()) == seen(name)
        visitor.look(elsewhere)
    picture(page, "hostile-page-name")
    visitor.open("lab")  # whose menus and avatars show it as well
    visitor.watch.assert_untouched(page, elsewhere)


def test_094_names_of_keys_devices_factors_and_accounts_are_inert(
    visitor: Visitor, server: IdentityServer, elsewhere: Listener, request: pytest.FixtureRequest
) -> None:
    person = user_maker(server)("analyst", username=f"keys-{len(request.node.name)}")
    visitor.log_in(person)
    page = visitor.page
    for name in SHORT:
        key = {"name": name, "permissions": ["models:read"]}
        assert visitor.call("POST", "/me/keys", key) == 200
        let_in(visitor, name, elsewhere)
    picture(page, "hostile-page-device")
    label = SHORT[8]
    server.foundation.database.write_now(
        lambda connection: connection.execute(
            insert(external_accounts).values(
                issuer="http://127.0.0.1:9",
                subject=person.id,
                user_id=person.id,
                label=label,
                linked_at=1.0,
            )
        )
    )
    visitor.open("uait/account")
    page.get_by_label("Authenticator app", exact=True).fill(SHORT[4])
    page.get_by_role("button", name="Add app", exact=True).click()
    secret = page.locator("#totp-secret")
    expect(secret).not_to_be_empty()
    page.get_by_label("The code that the app shows now").fill(pyotp.TOTP(secret.inner_text()).now())
    page.get_by_role("button", name="Confirm", exact=True).click()
    expect(page.locator("#factor-list li")).to_contain_text(SHORT[4])
    visitor.look(elsewhere)
    visitor.open("uait/account")
    for row in ("#key-list", "#device-list"):
        expect(page.locator(f"{row} li")).to_have_count(len(SHORT))
        texts = "\n".join(page.locator(f"{row} li").all_inner_texts())
        assert [name for name in SHORT if seen(name) not in seen(texts)] == []
    expect(page.locator("#account-list li")).to_contain_text([label])
    expect(page.locator("#account-list li small")).to_contain_text([SHORT[3]])
    visitor.look(elsewhere)
    page.locator("#keys-title").scroll_into_view_if_needed()
    picture(page, "hostile-page-keys")


def let_in(visitor: Visitor, name: str, elsewhere: Listener) -> None:
    """Approve a device on its page."""
    page = visitor.page
    begun = page.request.post(f"{visitor.base}uait/v1/device", data={"client": name})
    visitor.open("uait/device")
    page.get_by_label("Code", exact=True).fill(begun.json()["user_code"])
    page.get_by_role("button", name="Look it up").click()
    expect(page.locator("#client")).to_have_text(name)
    visitor.look(elsewhere)
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("status")).to_contain_text("It is logged in")
    grant = {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": begun.json()["device_code"],
    }
    assert page.request.post(f"{visitor.base}uait/v1/token", data=grant).ok


def test_094_a_browser_that_calls_itself_a_tag_is_inert(
    visitor: Visitor,
    browser: Browser,
    server: IdentityServer,
    elsewhere: Listener,
    request: pytest.FixtureRequest,
) -> None:
    person = user_maker(server)("analyst", username=f"agent-{len(request.node.name)}")
    visitor.log_in(person)
    other = browser.new_context(bypass_csp=True)
    another = Visitor(other.new_page(), server)
    another.log_in(person)
    another.open("uait/account")
    expect(another.page.locator("#session-list")).to_contain_text(SHORT[1])
    another.look(elsewhere)
    other.close()


@pytest.mark.parametrize("logged_in", [False, True])
def test_094_parameters_of_pages_are_inert(
    visitor: Visitor,
    server: IdentityServer,
    elsewhere: Listener,
    logged_in: bool,
    request: pytest.FixtureRequest,
) -> None:
    if logged_in:
        name = f"parameters-{len(request.node.name)}"
        visitor.log_in(user_maker(server)("analyst", username=name))
    for text in ("".join(SHORT), SHORT[0], *SHORT[3:7]):
        query = urlencode(dict.fromkeys(PARAMETERS, text))
        fragment = urlencode({"secret": text, "user_code": text, "next": text})
        for path in ONES_OWN if logged_in else ANYBODYS:
            visitor.open(f"{path}?{query}#{fragment}")
            visitor.look(elsewhere)
        for path in ("uait/v1/login/oidc/", "uait/v1/users/"):
            visitor.open(path + quote(text, ""))
            visitor.look(elsewhere)
    visitor.open(f"uait/v1/login/oidc/evil?{urlencode({'next': SHORT[0]})}")
    expect(visitor.page.get_by_role("alert")).to_contain_text(SHORT[3])
    picture(visitor.page, "hostile-page-problem")
    visitor.open("login")
    if not logged_in:
        expect(visitor.page.get_by_role("link", name=f"Log in with {SHORT[3]}")).to_be_visible()
        picture(visitor.page, "hostile-page-login")


def test_094_jupyter_pages_that_repeat_an_address_are_inert(
    visitor: Visitor, elsewhere: Listener, server: IdentityServer
) -> None:
    """The errors of paths that nobody serves are not our pages, but on our server."""
    for text in SHORT:
        for path in (quote(text, ""), f"files/{quote(text, '')}", f"lab/tree/{quote(text, '')}"):
            visitor.open(f"{path}?{urlencode({'error': text})}")
            visitor.watch.assert_untouched(visitor.page, elsewhere)
