"""Files of every kind become text with places; what cannot be read says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.knowledge.pdfs import pdf
from uait_server_ext.errors import UnsupportedDocument
from uait_server_ext.knowledge.reading.chunk import chunk
from uait_server_ext.knowledge.reading.decode import decode
from uait_server_ext.knowledge.reading.read import parse, read


def headings(document):
    return [section.headings for section in document.sections]


def test_markdown_headings_not_those_in_code():
    front = b"---\ntitle: 'The Guide'\n---\n"
    text = front + b"Intro\n=====\n\n```sh\n# a comment\n```\n\n## Use `it`\nText\n"
    document = parse(Path("guide.md"), text)
    assert document.title == "The Guide"
    assert headings(document) == [(), ("Intro",), ("Intro", "Use it")]


def test_a_markdown_file_without_headings_is_called_by_its_name():
    assert parse(Path("notes.md"), b"Just text.").title == "notes.md"


def test_rst_headings_by_their_underlines():
    text = b"=====\nTitle\n=====\n\nText\n\nPart\n----\n\nMore\n\nNext\n----\n"
    document = parse(Path("page.rst"), text)
    assert document.title == "Title"
    assert headings(document) == [(), ("Title",), ("Title", "Part"), ("Title", "Next")]


def test_plain_text_with_a_first_line_that_stands_alone():
    assert parse(Path("a.txt"), b"The subject\n\nThe body.").title == "The subject"
    assert parse(Path("a.txt"), b"One line\nand the next.").title == "a.txt"


def test_html_keeps_what_a_reader_sees():
    html = b"""<html><head><title>My &amp; page</title><style>p {}</style></head><body>
    <nav>Home</nav><script>var x = "hidden"</script>
    <h1>Install<a href="#i">\xc2\xb6</a></h1><p>Run <b>the</b>\n command.<br>Then wait.</p>
    <div>Before<p>inside</p>after</div><pre>a\n  b</pre><table><tr><td>1</td><td>2</td></tr></table>
    </body></html>"""
    document = parse(Path("page.html"), html)
    assert document.title == "My & page"
    assert document.text.split("\n\n") == [
        "Install¶", "Run the command. Then wait.", "Before", "inside", "after", "a\n  b", "1", "2",
    ]  # fmt: skip
    assert headings(document) == [("Install",)]
    assert chunk(document)[0].label == "§ Install"


def test_html_without_a_body_or_words_holds_no_text(tmp_path):
    file = tmp_path / "empty.html"
    file.write_text("<html><body><script>1</script></body></html>")
    with pytest.raises(UnsupportedDocument, match="no text"):
        read(file, None, 1_000)


def test_notebook_cells_and_what_they_printed():
    notebook = {
        "nbformat": 4,
        "cells": [
            {"cell_type": "markdown", "source": ["# Sums\n", "Add numbers."]},
            {
                "cell_type": "code",
                "source": "1 + 1",
                "outputs": [
                    {"output_type": "execute_result", "data": {"text/plain": ["2"]}},
                    {"output_type": "stream", "text": "printed \ud800\0"},
                    {"output_type": "error", "ename": "ValueError", "evalue": "no"},
                    {"output_type": "display_data", "data": {"image/png": "AAAA"}},
                ],
            },
            {"cell_type": "code", "source": "", "outputs": []},
        ],
    }
    document = parse(Path("sums.ipynb"), json.dumps(notebook).encode())
    assert document.title == "Sums"
    assert [section.cell for section in document.sections] == [1, 2]
    assert document.text.endswith("1 + 1\n\n2\n\nprinted \ufffd\ufffd\n\nValueError: no")
    assert "AAAA" not in document.text


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"worksheets": []}', b'{"cells": [1]}'])
def test_what_is_no_notebook_says_so(content):
    with pytest.raises(UnsupportedDocument, match="open and save it in Jupyter"):
        parse(Path("broken.ipynb"), content)


def test_python_that_does_not_parse_is_still_read():
    document = parse(Path("old.py"), b'print "hello"\n\ndef f():\n    pass\n')
    assert len(document.sections) == 2


def test_other_code_is_cut_at_the_margin():
    document = parse(Path("main.go"), b"package main\n\nfunc a() {\n}\n\nfunc b() {\n}\n")
    assert [document.text[s.start : s.start + 7] for s in document.sections] == [
        "package", "func a(", "func b(",
    ]  # fmt: skip


def test_pdf_pages():
    document = parse(Path("report.pdf"), pdf([["The first page", "goes on"], [], ["The third"]]))
    assert document.title == "report.pdf"
    assert [(s.page, document.text[s.start : s.end]) for s in document.sections] == [
        (1, "The first page\ngoes on"), (3, "The third"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%PDF-1.7 nothing of one", "damaged"),
        (pdf([["x"]])[:100], "damaged"),
        (pdf([["secret"]], locked=True), "password"),
        (pdf([[]]), "OCR"),
    ],
)
def test_a_pdf_that_cannot_be_read_says_why(content, reason):
    with pytest.raises(UnsupportedDocument, match=reason):
        parse(Path("report.pdf"), content)


@pytest.mark.parametrize("name", ["letter.docx", "picture.gif", "table.csv"])
def test_kinds_that_are_not_read_say_so(name):
    with pytest.raises(UnsupportedDocument, match=Path(name).suffix):
        parse(Path(name), b"anything")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("grün".encode(), "grün"),
        ("a naïve – or “quoted” – word".encode("cp1252"), "a naïve – or “quoted” – word"),
        ("über".encode("utf-16"), "über"),
        ("über".encode("utf-16-be").join([b"\xfe\xff", b""]), "über"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"", ""),
    ],
)
def test_text_in_its_encodings(data, text):
    assert decode(data) == text


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03" * 20,
        b"\x89PNG\r\n\x1a\n\x00\x00",
        "Привет, мир".encode("cp1251"),
        "データ".encode("shift_jis"),
        b"\xff\xfeodd",
        bytes(range(1, 32)) * 10,
    ],
)
def test_what_is_no_text_is_refused(data):
    with pytest.raises(UnsupportedDocument):
        decode(data)


def test_a_known_content_is_not_parsed(tmp_path):
    file = tmp_path / "a.md"
    file.write_text("Hello")
    first = read(file, None, 100)
    assert first.passages
    again = read(file, first.sha256, 100)
    assert (again.sha256, again.passages) == (first.sha256, None)


def test_a_file_that_grew_over_the_limit_is_refused(tmp_path):
    file = tmp_path / "a.md"
    file.write_text("too long")
    with pytest.raises(UnsupportedDocument, match="limit"):
        read(file, None, 5)
