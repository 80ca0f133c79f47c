"""The side panel in a real browser, through the real login, over the real server and model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.ui.panel import LOAD_MS, AskPanel, log_in
from tests.ui.pictures import picture
from uait_server_ext.workflows.server import OwnServer

pytestmark = pytest.mark.slow

ANSWERED = "Which kind of quotes should be used around docstrings?"
LONG = "What does the lantern of the north tower burn?"
DECLINED = "What is the melting point of tungsten?"
NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "id": "first",
            "source": "",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.fixture(scope="module")
def logged_in(browser: Browser, lab_server: OwnServer) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    log_in(page, lab_server, lab_server.token)
    expect(page.locator("#jp-main-dock-panel")).to_be_visible(timeout=LOAD_MS)
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(logged_in: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open a page whose last state is kept as an image, and whose scripts must not fail."""
    page = logged_in.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    picture(page, request.node.name)
    page.close()
    assert not failures


@pytest.fixture
def panel(page: Page, lab_server: OwnServer) -> AskPanel:
    panel = AskPanel(page, lab_server)
    panel.choose("Collection", "docs")
    return panel


def test_a_wrong_token_opens_nothing(browser: Browser, lab_server: OwnServer) -> None:
    context = browser.new_context()
    page = context.new_page()
    log_in(page, lab_server, "wrong")
    expect(page.get_by_text("Invalid credentials")).to_be_visible()
    answer = page.request.get(f"{lab_server.url}uait/v1/collections")
    assert answer.status == 401
    context.close()


def test_an_answer_streams_and_cites_a_document_that_opens(panel: AskPanel) -> None:
    panel.ask(ANSWERED)
    expect(panel.answer.locator(".jp-uait-extract")).to_contain_text("triple double quotes")
    panel.wait_for_end()
    lengths = panel.lengths()
    assert len(lengths) > 3
    streamed = lengths[:-1]  # the last one is of the whole answer, without the space around it
    assert streamed == sorted(streamed)
    source = panel.answer.get_by_role("button", name="documents/pep-0257.rst").first
    panel.answer.get_by_label("Passage of source 1").click()
    expect(panel.answer.locator(".jp-uait-Citation .jp-uait-quote").first).to_be_visible()
    source.click()
    expect(panel.page.get_by_role("tab", name="pep-0257.rst")).to_be_visible(timeout=LOAD_MS)


def test_stop_ends_a_long_answer_and_the_next_question_works(panel: AskPanel) -> None:
    panel.choose("Model", "echo")
    panel.ask(LONG)
    expect(panel.phrasing).to_contain_text("lit again")
    panel.button("Stop").click()
    expect(panel.answer).to_contain_text("Stopped. The answer is not complete.")
    expect(panel.question).to_be_focused()
    text = panel.phrasing.inner_text()
    panel.page.wait_for_timeout(500)
    assert panel.phrasing.inner_text() == text
    panel.ask(LONG)
    panel.wait_for_end()
    assert len(panel.phrasing.inner_text()) > len(text)


def test_a_question_that_the_documents_do_not_answer_is_declined(panel: AskPanel) -> None:
    panel.ask(DECLINED)
    expect(panel.answer).to_contain_text('The documents in "docs" do not answer this')
    expect(panel.phrasing).to_have_count(0)
    expect(panel.button("Insert as cell")).to_have_count(0)


def test_an_answer_becomes_a_cell_that_says_who_wrote_it(page: Page, lab_server: OwnServer) -> None:
    address = f"{lab_server.url}api/contents/answers.ipynb"
    headers = {"Authorization": f"token {lab_server.token}"}
    notebook = {"type": "notebook", "format": "json", "content": NOTEBOOK}
    assert page.request.put(address, data=notebook, headers=headers).ok
    panel = AskPanel(page, lab_server, "answers.ipynb")
    panel.choose("Collection", "docs")
    panel.ask(ANSWERED)
    panel.wait_for_end()
    panel.button("Insert as cell").click(timeout=LOAD_MS)
    cell = page.locator(".jp-MarkdownCell .jp-RenderedMarkdown")
    expect(cell).to_contain_text("triple double quotes")
    expect(cell.locator("ol > li").first).to_contain_text("documents/pep-0257.rst")
    dismiss_news(page)
    panel.pose()
    picture(page, "panel-light")
    cell.click()
    with page.expect_response(lambda got: got.request.method == "PUT" and address in got.url):
        page.keyboard.press("Control+s")
    cells = page.request.get(address, headers=headers).json()["content"]["cells"]
    assert [cell["cell_type"] for cell in cells] == ["code", "markdown"]
    provenance = cells[1]["metadata"]["uait"]
    assert provenance["generated"] is True
    assert provenance["collection"] == "docs"
    assert provenance["question"] == ANSWERED
    assert provenance["citations"][0]["path"] == "documents/pep-0257.rst"


def test_the_panel_follows_the_dark_theme(panel: AskPanel) -> None:
    page = panel.page
    page.locator(".lm-MenuBar-item", has_text="Settings").click()
    page.locator(".lm-Menu-item", has_text="Theme").first.click()
    page.locator(".lm-Menu-item", has_text="JupyterLab Dark").first.click()
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    panel.ask(ANSWERED)
    panel.wait_for_end()
    background = panel.root.evaluate("node => getComputedStyle(node).backgroundColor")
    assert background == "rgb(33, 33, 33)"
    dismiss_news(page)
    panel.pose()
    picture(page, "panel-dark")


def dismiss_news(page: Page) -> None:
    """Close JupyterLab's own question about news where it covers the picture."""
    question = page.locator("#react-toastify-container").get_by_role(
        "button", name="No", exact=True
    )
    if question.is_visible():
        question.click()
        expect(question).to_have_count(0)
