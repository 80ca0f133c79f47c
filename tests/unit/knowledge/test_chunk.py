"""Passages: exact spans that cover the text, never too large, whatever the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.knowledge.reading.chunk import chunk
from uait_server_ext.knowledge.reading.code import parse_code, parse_python
from uait_server_ext.knowledge.reading.document import Document, Section
from uait_server_ext.knowledge.reading.prose import parse_markdown, parse_rst, parse_text
from uait_server_ext.knowledge.reading.sentences import sentence_spans
from uait_server_ext.knowledge.reading.tokens import Ruler, count_tokens

# Text as it comes: words, marks of structure, any character of Unicode that a file can hold.
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(["\n", "\n\n", "# Heading\n", "- item\n", "    code\n", "def f():\n", "word "]),
    st.sampled_from(["Sentence one. ", "Is it? ", "```\n", "===\n", "a" * 900, "数据" * 300]),
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)
PARSERS = st.sampled_from([parse_markdown, parse_rst, parse_text, parse_python, parse_code])


@given(TEXTS, PARSERS, st.integers(1, 60))
def test_spans_reproduce_cover_and_fit(text, parse, size):
    document = parse(Path("document"), text, "text/plain")
    passages = chunk(document, size)
    end = 0
    for passage in passages:
        assert passage.text == document.text[passage.start : passage.end]
        assert passage.text.strip()
        assert passage.label
        assert document.text[end : passage.start].strip() == ""
        assert passage.start >= end
        assert count_tokens(passage.text) <= size
        end = passage.end
    assert document.text[end:].strip() == ""


@given(TEXTS)
def test_sentences_cover_in_order(text):
    end = 0
    for start, last in sentence_spans(text):
        assert text[end:start].strip() == ""
        assert start < last
        end = last
    assert text[end:].strip() == ""


@given(TEXTS, st.data())
def test_ruler_measures_spans_like_their_texts(text, data):
    cut = data.draw(st.integers(0, len(text)))
    assert Ruler(text).count(0, cut) + Ruler(text).count(cut, len(text)) == count_tokens(text)


def test_the_estimate_is_near_the_tokenizer(model_cache, shared_data):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(next(model_cache.rglob("tokenizer.json"))))
    tokenizer.no_truncation()
    for file in sorted((shared_data / "chunking" / "corpora").glob("*.md")):
        text = file.read_text()[:50_000]
        true = len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert count_tokens(text) / true == pytest.approx(1, abs=0.12), file.name


def test_sections_are_not_crossed_but_bare_headings_join():
    text = "# Guide\n\n## Install\n\nRun the command.\n\n## Use\n\nOpen the panel.\n"
    passages = chunk(parse_markdown(Path("guide.md"), text, "text/markdown"))
    assert [(passage.label, passage.headings) for passage in passages] == [
        ("§ Install", ("Guide", "Install")),
        ("§ Use", ("Guide", "Use")),
    ]
    assert passages[0].text.startswith("# Guide")
    assert passages[1].line == 7


def test_small_functions_share_a_passage_and_say_their_lines():
    text = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    (passage,) = chunk(parse_python(Path("numbers.py"), text, "text/x-python"))
    assert (passage.label, passage.line) == ("lines 1-6", 1)


def test_methods_stand_under_their_class():
    body = "\n".join(f"        value_{number} = {number}" for number in range(30))
    text = f"class Tree:\n    def grow(self):\n{body}\n\n    def cut(self):\n{body}\n"
    passages = chunk(parse_python(Path("tree.py"), text, "text/x-python"))
    # The class's own line goes with its first method, so only `Tree` stands over both.
    assert [passage.headings for passage in passages] == [("Tree",), ("Tree", "cut")]


def test_parts_of_a_long_paragraph_are_of_about_equal_size():
    text = " ".join(f"This is sentence number {number} of the paragraph." for number in range(60))
    sizes = [count_tokens(passage.text) for passage in chunk(Document("t", "text/plain", text))]
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) < 30


def test_pages_and_cells_are_labelled():
    text = "First page.\n\nSecond page."
    sections = [Section(0, 11, page=1), Section(13, 25, page=2)]
    passages = chunk(Document("t", "application/pdf", text, sections))
    assert [(p.label, p.page, p.line) for p in passages] == [
        ("page 1", 1, None),
        ("page 2", 2, None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith met J. Doe. They spoke.", ["Dr. Smith met J. Doe.", "They spoke."]),
        ("See Fig. 3 for e.g. the rate. It fell by 3.5 %.", 2),
        ("Really? Yes! Good.", ["Really?", "Yes!", "Good."]),
        ("# Title\nText of it.\n- one\n- two", ["# Title\nText of it.", "- one", "- two"]),
        ("第一句。第二句。", ["第一句。", "第二句。"]),
    ],
)
def test_sentences_of_real_prose(text, expected):
    found = [text[start:end] for start, end in sentence_spans(text)]
    assert (len(found) if isinstance(expected, int) else found) == expected
