"""A JupyterLab that shows hostile text: under UAIT's strict policy, or plain Jupyter's none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, BrowserContext, Locator, Page, ViewportSize, expect

from tests.security.conftest import identity_server
from tests.ui.hostile_corpus import Payload
from tests.ui.panel import LOAD_MS, log_in
from tests.ui.people import user_maker
from uait_kernel.client import Client
from uait_server_ext.workflows.server import own_server

Mode = Literal["strict", "plain"]

COLLECTION = "hostile"
VIEW = ViewportSize(width=1280, height=900)
RATES = "--UaitApp.rate_limits={'login': {'user': 10000, 'key': 10000, 'ip': 10000}}"
QUOTED = 270  # characters of payloads, of the 500 that a quotation has at most
FILLER = " ".join(["The tower is old and its stairs are worn."] * 8)
NAMES = (
    "a<img src=x onerror=top.__uait_xss=[901]>.txt",
    '"><svg onload=top.__uait_xss=[902]>.txt',
    "[click](javascript:top.__uait_xss=[903]).txt",
    "\u202etxt.<script>top.__uait_xss=[904].txt",
)
ATTACK = "<img src=x onerror=top.__uait_xss=[905]>"


@dataclass
class Lab:
    """One person's browser at one server."""

    mode: Mode
    url: str
    root: Path
    context: BrowserContext
    headers: dict[str, str]

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Call an operation as the person who is logged in; return its JSON."""
        request = self.context.request
        cookies = {one.get("name"): one.get("value", "") for one in self.context.cookies(self.url)}
        headers = {"X-XSRFToken": cookies.get("_xsrf", ""), "Accept": "application/json"}
        answer = request.fetch(
            f"{self.url}{path}",
            method=method,
            data=body,
            headers={**headers, **self.headers},
            timeout=LOAD_MS,
        )
        assert answer.ok, answer.text()
        return answer.json() if answer.body() else None

    def write_cards(self, cards: Sequence[Card]) -> None:
        """Write the cards, and documents with hostile names, titles and headings."""
        folder = self.root / "cards"
        folder.mkdir(exist_ok=True)
        for card in cards:
            (folder / f"{card.word}.txt").write_text(card.document, encoding="utf-8")
        self.write_names(self.root / "names")

    def write_names(self, folder: Path) -> None:
        """Write documents whose name, title or heading is hostile, and a file of no text."""
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(NAMES):
            text = f"The boat quonamed{'abcd'[number]}ax sails at noon. {FILLER}"
            (folder / name).write_text(text)
        escaped = ATTACK.replace("<", "&lt;")
        (folder / "title.html").write_text(
            f"<title>{escaped}</title><h1>{escaped}</h1>"
            f"<p>The boat quotitleax sails at noon. {FILLER}</p>"
        )
        (folder / "heading.md").write_text(
            f"# `{ATTACK}`\n\nThe boat quoheadingax sails at noon. {FILLER}\n"
        )
        (folder / "<b>binary<script>.txt").write_bytes(b"\0\1\2" * 100)

    def notebook(self, name: str, sources: Sequence[str]) -> None:
        """Write a notebook of code cells that were never run."""
        cells: list[dict[str, Any]] = [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "source": source,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            for number, source in enumerate(sources)
        ]
        content = {
            "cells": cells,
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.root / name).write_text(json.dumps(content))


@dataclass(frozen=True)
class Card:
    """A document of one sentence with a few payloads in it.

    Its word is in no other document, so that a question finds it.
    """

    word: str
    payloads: tuple[Payload, ...]

    @property
    def sentence(self) -> str:
        """What the document says, without the end of its sentence."""
        texts = " and ".join(" ".join(payload.text.split("\n")) for payload in self.payloads)
        return f"The keeper {self.word} wrote on the card of {self.word}: {texts}"

    @property
    def document(self) -> str:
        """The document's text, so long that few control characters in it leave it text."""
        filler = "" if self.sentence.isprintable() else f" {FILLER} {FILLER}"
        return f"{self.sentence} and so the card ended.{filler}\n"

    @property
    def question(self) -> str:
        """A question that the document answers."""
        return f"What did the keeper {self.word} write on the card of {self.word}?"


def cards(payloads: Sequence[Payload]) -> list[Card]:
    """Return documents that hold all of the payloads, as many in each as can be quoted."""
    made: list[list[Payload]] = []
    for payload in payloads:
        room = QUOTED - sum(len(one.text) for one in made[-1]) if made else 0
        if len(payload.text) > room:
            made.append([])
        made[-1].append(payload)
    return [Card(word(some[0].number), tuple(some)) for some in made]


def word(number: int) -> str:
    """Return a word of letters for a number."""
    letters = f"{number:03d}".translate(str.maketrans("0123456789", "bdfgklmnrt"))
    return f"quo{letters}ax"


def seen(text: str) -> str:
    """Return text as it can be compared with what a page shows: without space and control."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ufffd]+", "", text)


@contextmanager
def open_lab(mode: Mode, folder: Path, browser: Browser) -> Iterator[Lab]:
    """Run a server with one person in a browser, logged in."""
    context = browser.new_context(viewport=VIEW)
    try:
        if mode == "strict":
            with identity_server(folder, RATES) as server:
                person = user_maker(server)("admin", username="ada")
                page = context.new_page()
                page.goto(f"{server.url}lab")
                page.get_by_label("User name").fill(person.username)
                page.get_by_label("Password").fill(person.password)
                page.get_by_role("button", name="Log in", exact=True).click()
                expect(page).to_have_url(re.compile("/lab"))
                page.close()
                yield Lab(mode, server.url, folder / "root", context, {})
        else:
            root = folder / "root"
            root.mkdir(parents=True)
            options = {"data_dir": str(folder / "state")}
            with own_server(root, options=options, log=folder / "log") as own:
                page = context.new_page()
                log_in(page, own, own.token)
                expect(page).to_have_url(re.compile("/lab"))
                page.close()
                headers = {"Authorization": f"token {own.token}"}
                yield Lab(mode, own.url, root, context, headers)
    finally:
        context.close()


class NotebookPage:
    """A notebook in JupyterLab, run cell by cell with the keyboard as a person does."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.page: Page = lab.context.new_page()
        self.page.goto(f"{lab.url}lab/tree/{name}?reset")
        splash = self.page.locator("#jupyterlab-splash")
        splash.wait_for(state="attached", timeout=LOAD_MS)
        splash.wait_for(state="detached", timeout=LOAD_MS)
        self.cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        expect(self.cells.first).to_be_visible(timeout=LOAD_MS)
        # The notebook's own sign says "idle" before there is a kernel.
        expect(self.page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=LOAD_MS)

    def run(self, number: int) -> Locator:
        """Run one cell and return its outputs."""
        cell = self.cells.nth(number)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")
        expect(cell.locator(".jp-InputPrompt")).to_have_text(
            re.compile(r"\[\d+\]:"), timeout=4 * LOAD_MS
        )
        cell.scroll_into_view_if_needed()
        return cell.locator(".jp-OutputArea-output")

    def saved_html(self, lab: Lab) -> list[str]:
        """Save the notebook and return the HTML of its outputs."""
        with self.page.expect_response(
            lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url
        ):
            self.page.keyboard.press("Control+s")
        path = unquote(urlsplit(self.page.url).path).rpartition("/")[2]
        cells = json.loads((lab.root / path).read_text(encoding="utf-8"))["cells"]
        found = [
            output["data"]["text/html"]
            for cell in cells
            for output in cell["outputs"]
            if "text/html" in output.get("data", {})
        ]
        return ["".join(html) for html in found]


def ingest(lab: Lab) -> None:
    """Make the collection of the cards."""
    if lab.mode == "plain":
        token = lab.headers["Authorization"].removeprefix("token ")
        for _ in Client(lab.url, token).ingest(str(lab.root / "cards"), COLLECTION):
            pass
    else:
        lab.api("POST", f"uait/v1/collections/{COLLECTION}/ingest", {"path": "cards"})
