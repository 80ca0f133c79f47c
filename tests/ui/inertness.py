"""Watches what text that is shown does: scripts, dialogs, navigation, requests, elements."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Dialog, Locator, Page, Request

from tests.ui.hostile_corpus import MARKER, OWN

TEXT = (
    "p br hr h3 h4 h5 h6 strong em s code pre a q bdi div span sup blockquote ul ol li "
    "table thead tbody tr th td"
)
FORMS = "button input label form textarea fieldset legend select option dialog"
# Elements that each kind of place is made of; whatever else is found came from the text shown.
OURS = {
    "output": f"{TEXT} style progress",
    "panel": f"{TEXT} article button footer",
    "cell": f"{TEXT} h1 h2",
    "page": f"{TEXT} {FORMS} h1 h2 dl dt dd small section header main nav img noscript",
}
# Attributes that can load, lead somewhere or run something, with what they may hold.
FIND_ALIVE = """(root, [tags, places, place]) => {
    const found = [];
    const leads = new RegExp('^(xlink:href|href|src|srcset|action|formaction|poster|data|ping|' +
        'background)$');
    const icon = node => node.closest('svg[data-icon]');
    const formula = node => node.closest('mjx-container');
    for (const node of root.querySelectorAll('*')) {
        const name = node.localName;
        if (!tags.includes(name) && !icon(node) && !formula(node)) {
            found.push(`<${name}>`);
        }
        if (/^(script|iframe|object|embed|base|meta|link|template|image|use)$/.test(name)) {
            found.push(`<${name}> loads`);
        }
        for (const { name: attribute, value } of node.attributes) {
            if (/^on/i.test(attribute) || /commandlinker|srcdoc/.test(attribute)) {
                found.push(`${name}[${attribute}=${value}]`);
            } else if (attribute === 'style' && /url|image|expression|fixed|@import/i.test(value)) {
                found.push(`${name}[style=${value}]`);
            } else if (leads.test(attribute)) {
                const link = attribute === 'href' && (name === 'a' || formula(node)) &&
                    (/^(https?:\\/\\/|mailto:)/i.test(value) || value.startsWith('#') ||
                    places.some(start => value === start));
                const picture = place === 'page' && attribute === 'src' && name === 'img' &&
                    value.includes('logo');
                if (!link && !picture) {
                    found.push(`${name}[${attribute}=${value}]`);
                }
            } else if (/^(id|name)$/.test(attribute) && /cookie|body|config/.test(value)) {
                found.push(`${name}[${attribute}=${value}]`);
            }
        }
        if (name === 'style' && !node.textContent.startsWith('\\n.uait{') &&
            !node.textContent.startsWith('.uait{')) {
            found.push(`style: ${node.textContent}`);
        }
    }
    return found;
}"""


class Listener:
    """A server on another port of this machine, which nothing may call."""

    def __init__(self, server: ThreadingHTTPServer, calls: list[str]) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.calls = calls


@contextmanager
def listener() -> Iterator[Listener]:
    """Listen on a free port and note the path of each request."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_response(204)
            self.end_headers()

        do_POST = do_HEAD = do_OPTIONS = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Listener(server, calls)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Watch:
    """Everything that pages of one browser context did besides showing what they should."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.base = base
        self.host = urlsplit(base).netloc
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.opened: list[str] = []
        self.violations: list[str] = []
        context.on("request", self._request)
        context.on("dialog", self._dialog)
        context.on("console", lambda message: self._console(message.text))
        for page in context.pages:
            self._page(page)
        context.on("page", self._popup)

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        away = parts.scheme not in ("data", "blob", "about") and parts.netloc != self.host
        if away or (OWN in parts.path and not request.is_navigation_request()):
            self.requests.append(request.url)

    def _dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _console(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.violations.append(text)

    def _page(self, page: Page) -> None:
        page.on("websocket", lambda socket: self._socket(socket.url))

    def _popup(self, page: Page) -> None:
        self._page(page)
        if page.url != "about:blank":
            self.opened.append(page.url)

    def _socket(self, url: str) -> None:
        if urlsplit(url).netloc != self.host:
            self.requests.append(url)

    def begin(self, page: Page) -> None:
        """Mark the page as it is now, so that a navigation or another script's end is seen."""
        page.evaluate("window.uaitStillHere = location.origin")
        self.violations.clear()

    def assert_inert(self, page: Page, listener: Listener, settle_ms: int = 300) -> None:
        """Fail on whatever any text has done since the page was marked."""
        page.wait_for_timeout(settle_ms)  # what fails to load tells so a little later
        assert page.evaluate("window.uaitStillHere") == f"http://{self.host}"
        assert self.violations == [], self.violations
        self.assert_untouched(page, listener)

    def assert_untouched(self, page: Page, listener: Listener) -> None:
        """Fail on a script of a text that ran, and on what left this server."""
        assert page.evaluate(f"window.{MARKER}") is None
        assert self.dialogs == [], self.dialogs
        assert self.opened == [], self.opened
        assert self.requests == [], self.requests
        assert listener.calls == [], listener.calls
        assert len(page.context.pages) == 1


def assert_made_of_text(place: Locator, kind: str, *links: str) -> None:
    """Fail on any element or attribute in some places of the page that is not its maker's own.

    Args:
        place: one or more elements; those in them are looked at.
        kind: a key of `OURS`.
        links: where links may lead besides http, https and mailto addresses.
    """
    arguments = [OURS[kind].split(), list(links), kind]
    alive = [found for one in place.all() for found in one.evaluate(FIND_ALIVE, arguments)]
    assert alive == [], alive
