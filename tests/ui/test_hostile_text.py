"""Hostile text of models and documents in JupyterLab does nothing: cases 94 and 95.

Each is shown in the panel, in a cell that the panel inserts, and by magics in a freshly run cell,
whose raw HTML or Markdown JupyterLab would not sanitise: once under UAIT's policy, and once in
plain Jupyter, which has none, because the text must be harmless without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.ui.hostile_corpus import MARKER, Payload, acting, calling
from tests.ui.hostile_lab import (
    ATTACK,
    COLLECTION,
    NAMES,
    Lab,
    Mode,
    NotebookPage,
    cards,
    ingest,
    open_lab,
    seen,
)
from tests.ui.inertness import Listener, Watch, assert_made_of_text, listener
from tests.ui.panel import LOAD_MS, AskPanel
from tests.ui.pictures import picture

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

BATCH = 20  # JupyterLab shows at most 50 outputs of a cell


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Listener]:
    with listener() as running:
        yield running


@pytest.fixture(scope="module")
def corpus(elsewhere: Listener) -> dict[int, list[Payload]]:
    return {94: acting(), 95: calling(elsewhere.url)}


@pytest.fixture(scope="module", params=get_args(Mode))
def lab(
    request: pytest.FixtureRequest,
    browser: Browser,
    corpus: dict[int, list[Payload]],
    model_cache: Path,
    jupyter_folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    with open_lab(request.param, tmp_path_factory.mktemp("hostile"), browser) as running:
        running.write_cards([*cards(corpus[94]), *cards(corpus[95])])
        ingest(running)
        yield running


@pytest.fixture(autouse=True)
def quiet(elsewhere: Listener) -> None:
    elsewhere.calls.clear()


def test_094_corpus_is_large_enough(corpus: dict[int, list[Payload]]) -> None:
    texts = [payload.text for payloads in corpus.values() for payload in payloads]
    assert len(corpus[94]) >= 40
    assert len(corpus[95]) >= 20
    assert len(set(texts)) == len(texts)


def parts(values: list[Any]) -> list[list[Any]]:
    """Cut a list into parts of as many outputs as a cell shows."""
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]


def show_raw(lab: Lab, payloads: list[Payload]) -> Page:
    """Show payloads as raw HTML and Markdown, as a careless magic would."""
    kinds = {"html": "HTML", "markdown": "Markdown"}
    shown = [(kinds[kind], p.text) for p in payloads if (kind := p.runs or p.asks)]
    lab.notebook(
        "raw.ipynb",
        ["from IPython.display import HTML, Markdown, display"]
        + ["\n".join(f"display({kind}({text!r}))" for kind, text in part) for part in parts(shown)],
    )
    notebook = NotebookPage(lab, "raw.ipynb")
    for number in range(notebook.cells.count()):
        notebook.run(number)
    notebook.page.wait_for_timeout(1500)
    return notebook.page


def raw_text_acts_without_the_policy_only(
    lab: Lab, payloads: list[Payload], elsewhere: Listener, name: str
) -> None:
    """Show that the corpus is alive, and that the policy is a wall of its own."""
    page = show_raw(lab, payloads)
    ran = set(page.evaluate(f"window.{MARKER} || []"))
    asked = {int(path[1:].partition("?")[0]) for path in elsewhere.calls}
    picture(page, f"hostile-raw-{name}-{lab.mode}")
    page.close()
    if lab.mode == "strict":
        assert ran == set()
        assert elsewhere.calls == []
    else:
        assert {p.number for p in payloads if p.runs} - ran == set()
        assert {p.number for p in payloads if p.asks} - asked == set()


def text_in_the_panel_is_inert(
    lab: Lab, payloads: list[Payload], elsewhere: Listener, name: str
) -> None:
    """Ask about every card; keep every answer as a cell."""
    lab.notebook("notes.ipynb", [""])
    page = lab.context.new_page()
    watch = Watch(lab.context, lab.url)
    panel = AskPanel(page, lab, "notes.ipynb")
    expect(page.locator(".jp-Notebook .jp-CodeCell")).to_be_visible(timeout=LOAD_MS)
    panel.choose("Collection", COLLECTION)
    panel.choose("Model", "echo")
    watch.begin(page)
    phrased: set[str] = set()
    for card in cards(payloads):
        panel.ask(card.question)
        panel.wait_for_end()
        panel.answer.get_by_label("Passage of source 1").click()
        panel.answer.get_by_role("button", name="Insert as cell", exact=True).click()
        for place in (
            panel.answer.locator(".jp-uait-extract"),
            panel.answer.locator(".jp-uait-Citation .jp-uait-quote").first,
            page.locator(".jp-MarkdownCell.jp-mod-active .jp-RenderedMarkdown"),
        ):
            expect(place).to_be_visible()
            assert seen(card.sentence) in seen(place.inner_text())
        phrased.add(seen(panel.phrasing.inner_text()).partition(":")[0])
    # The echo repeats the passage that its prompt begins with: this card's, or another's.
    assert len(phrased) > len(cards(payloads)) / 4
    picture(page, f"hostile-panel-{name}-{lab.mode}")
    texts = "\n".join(payload.text for payload in payloads)
    panel.ask(texts)  # more than a question may be
    expect(panel.answer.get_by_role("alert")).to_contain_text("tokens")
    assert seen(texts) in seen(panel.answer.get_by_role("heading").inner_text())
    assert_made_of_text(panel.root.get_by_role("article"), "panel")
    cells = page.locator(".jp-MarkdownCell .jp-RenderedMarkdown")
    expect(cells).to_have_count(len(cards(payloads)))
    assert_made_of_text(cells, "cell")
    watch.assert_inert(page, elsewhere)
    page.close()


def write_magics(lab: Lab, payloads: list[Payload]) -> dict[int, list[str]]:
    """Write a notebook that asks the model and the documents for every payload.

    Returns what must be read in the outputs of its cells, but for the first four.
    """
    words = ["quonamedaax", "quonamedbax", "quonamedcax", "quonameddax"]
    sources = [
        "%load_ext uait_kernel\n"
        "from IPython.display import display\n"
        "run = get_ipython().run_line_magic",
        "%kb add names -c names",
        f"for word in {[*words, 'quotitleax', 'quoheadingax']}:\n"
        "    display(run('kb', f'search -c names -k 1 --mode text {word}'))\n"
        "display(run('kb', 'status names'))\n"
        "display(run('kb', 'list'))",
        f'%ask --chat --model "{ATTACK}" Who sails?',
    ]
    expected: dict[int, list[str]] = {}
    for group in parts(payloads):
        expected[len(sources)] = [f"End of {payload.number}." for payload in group]
        texts = [f"{payload.text}\n\nEnd of {payload.number}." for payload in group]
        sources.append(
            f"for text in {texts!r}:\n"
            "    get_ipython().run_cell_magic(\n"
            "        'ask', '--chat --raw --model echo --max-tokens 2000', text)"
        )
    for some in parts(cards(payloads)):
        for verb, line, asked in (
            ("ask", f"--model echo -c {COLLECTION} -k 1 {{}}", [card.question for card in some]),
            ("kb", f"search -c {COLLECTION} -k 1 --mode text {{}}", [c.word for c in some]),
        ):
            expected[len(sources)] = [card.sentence for card in some]
            show = "display({})" if verb == "kb" else "{}"
            sources.append(
                f"for text in {asked!r}:\n    "
                + show.format(f"run({verb!r}, {line!r}.format(text))")
            )
    lab.notebook("magics.ipynb", sources)
    return expected


def text_in_magics_is_inert(
    lab: Lab, payloads: list[Payload], elsewhere: Listener, name: str
) -> None:
    """Run the magics in fresh cells, which JupyterLab trusts; then show what was saved alone."""
    expected = write_magics(lab, payloads)
    notebook = NotebookPage(lab, "magics.ipynb")
    page = notebook.page
    watch = Watch(lab.context, lab.url)
    watch.begin(page)
    notebook.run(0)
    expect(notebook.run(1)).to_contain_text(["<b>binary<script>.txt: "])
    expect(notebook.run(2)).to_contain_text([*NAMES, "title.html", ATTACK, "names", "names"])
    expect(notebook.run(3)).to_contain_text([ATTACK])
    for number, wanted in expected.items():
        outputs = notebook.run(number)
        expect(outputs).to_have_count(len(wanted), timeout=LOAD_MS)
        for text, sentence in zip(outputs.all_inner_texts(), wanted, strict=True):
            assert seen(sentence) in seen(text)
        picture(page, f"hostile-magics-{name}-{lab.mode}-{number}")
    assert_made_of_text(page.locator(".jp-OutputArea-output"), "output")
    saved = notebook.saved_html(lab)
    watch.assert_inert(page, elsewhere)
    # As another program would show them, which knows nothing of who made them.
    assert len(saved) >= len(payloads)
    page.goto("about:blank")
    page.set_content("".join(saved))
    page.wait_for_timeout(500)
    assert page.evaluate(f"window.{MARKER}") is None
    assert_made_of_text(page.locator("body"), "output")
    assert elsewhere.calls == []
    page.close()


def test_094_raw_text_runs_without_the_policy_only(
    lab: Lab, corpus: dict[int, list[Payload]], elsewhere: Listener
) -> None:
    raw_text_acts_without_the_policy_only(lab, corpus[94], elsewhere, "acting")


def test_095_raw_text_calls_without_the_policy_only(
    lab: Lab, corpus: dict[int, list[Payload]], elsewhere: Listener
) -> None:
    raw_text_acts_without_the_policy_only(lab, corpus[95], elsewhere, "calling")


def test_094_text_in_the_panel_runs_nothing(
    lab: Lab, corpus: dict[int, list[Payload]], elsewhere: Listener
) -> None:
    text_in_the_panel_is_inert(lab, corpus[94], elsewhere, "acting")


def test_095_text_in_the_panel_calls_nobody(
    lab: Lab, corpus: dict[int, list[Payload]], elsewhere: Listener
) -> None:
    text_in_the_panel_is_inert(lab, corpus[95], elsewhere, "calling")


def test_094_text_in_magics_runs_nothing(
    lab: Lab, corpus: dict[int, list[Payload]], elsewhere: Listener
) -> None:
    text_in_magics_is_inert(lab, corpus[94], elsewhere, "acting")


def test_095_text_in_magics_calls_nobody(
    lab: Lab, corpus: dict[int, list[Payload]], elsewhere: Listener
) -> None:
    text_in_magics_is_inert(lab, corpus[95], elsewhere, "calling")
