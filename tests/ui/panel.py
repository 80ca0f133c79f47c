"""The Ask panel as a person uses it: what the browser tests say, in terms of the page."""

from __future__ import annotations

import re
from typing import Protocol

from playwright.sync_api import Locator, Page, expect

from uait_server_ext.workflows.server import OwnServer

PANEL_ID = "uait-knowledge-chat"
LOAD_MS = 60_000
ANSWER_MS = 120_000
STEP_MS = 30_000

expect.set_options(timeout=STEP_MS)

# Notes every length that the newest answer's text has had, so that its growth can be seen later.
RECORD_GROWTH = """panel => {
    window.uaitLengths = [];
    new MutationObserver(() => {
        const answers = panel.querySelectorAll('.jp-uait-phrasing');
        const length = answers.length ? answers[answers.length - 1].textContent.length : 0;
        if (length && window.uaitLengths[window.uaitLengths.length - 1] !== length) {
            window.uaitLengths.push(length);
        }
    }).observe(panel, {childList: true, characterData: true, subtree: true});
}"""


def log_in(page: Page, server: OwnServer, token: str) -> None:
    """Open JupyterLab's address, be sent to the login page, and type the token there."""
    page.goto(f"{server.url}lab")
    expect(page).to_have_url(re.compile(r"/login\?next="))
    page.get_by_label("Password or token:").fill(token)
    page.get_by_role("button", name="Log in", exact=True).click()


class Served(Protocol):
    """Any server, by its address."""

    @property
    def url(self) -> str:
        """The base URL, with a slash at its end."""
        ...


class AskPanel:
    """One JupyterLab page with the panel open, beside a document if one is named."""

    def __init__(self, page: Page, server: Served, document: str = "") -> None:
        page.goto(f"{server.url}lab{'/tree/' if document else ''}{document}?reset")
        # While JupyterLab restores its layout it moves the focus.
        page.locator("#jupyterlab-splash").wait_for(state="attached", timeout=LOAD_MS)
        page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=LOAD_MS)
        page.locator(f'.lm-TabBar-tab[data-id="{PANEL_ID}"]').click()
        self.page = page
        self.root = page.locator(f"#{PANEL_ID}")
        self.question = self.root.get_by_label("Question")
        expect(self.question).to_be_visible()

    @property
    def answer(self) -> Locator:
        """The newest question with its answer."""
        return self.root.get_by_role("article").last

    @property
    def phrasing(self) -> Locator:
        """What the model has written so far, in the newest answer."""
        return self.answer.locator(".jp-uait-phrasing")

    def choose(self, label: str, value: str) -> None:
        """Choose a collection or a model."""
        self.root.get_by_label(label, exact=True).select_option(value)

    def ask(self, question: str) -> None:
        """Write a question and send it with Enter."""
        self.root.evaluate(RECORD_GROWTH)
        self.question.fill(question)
        self.question.press("Enter")

    def lengths(self) -> list[int]:
        """Return the lengths that the answer's text went through."""
        lengths: list[int] = self.page.evaluate("window.uaitLengths")
        return lengths

    def wait_for_end(self) -> None:
        """Wait until the newest answer is complete and shows its figures."""
        expect(self.answer.locator(".jp-uait-figures")).to_contain_text(
            "s in all", timeout=ANSWER_MS
        )

    def pose(self) -> None:
        """Make the panel wide enough for a picture and show it from the newest question on."""
        box = self.root.bounding_box()
        assert box
        edge, middle = box["x"] + box["width"] + 1, box["y"] + box["height"] / 2
        self.page.mouse.move(edge, middle)
        self.page.mouse.down()
        self.page.mouse.move(edge + 140, middle, steps=4)
        self.page.mouse.up()
        self.answer.evaluate("node => node.parentElement.scrollTo(0, node.offsetTop)")

    def button(self, name: str) -> Locator:
        """Return a button by its label."""
        return self.root.get_by_role("button", name=name, exact=True)
