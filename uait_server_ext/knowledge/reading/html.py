"""HTML: the words a reader sees, paragraph by paragraph, without scripts, styles and navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from uait_server_ext.knowledge.reading.document import Document, title_from
from uait_server_ext.knowledge.reading.prose import Heading, sections_of

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

UNSEEN = "head script style nav noscript template iframe svg canvas form button select dialog"
HEADINGS = {f"h{level}": level for level in range(1, 7)}
BLOCKS = frozenset(HEADINGS) | {
    *("address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div"),
    *("dl", "dt", "fieldset", "figcaption", "figure", "footer", "header", "hr", "li", "main"),
    *("ol", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead"),
    *("tr", "ul"),
}
# Documentation generators put a link to itself behind a heading.
ANCHOR = re.compile(r"\s*[#¶§]$")


def parse_html(path: Path, text: str, media_type: str) -> Document:
    """Read the visible text; the title is that of the page, else the first heading."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    page_title = tree.css_first("title")
    title = page_title.text() if page_title else None
    for node in tree.css(", ".join(UNSEEN.split())):
        node.decompose()
    paragraphs = _paragraphs(tree.body) if tree.body else []

    parts: list[str] = []
    headings: list[Heading] = []
    at = 0
    for tag, words in paragraphs:
        if tag in HEADINGS:
            headings.append((at, HEADINGS[tag], ANCHOR.sub("", words)))
        parts.append(words)
        at += len(words) + 2
    body = "\n\n".join(parts)
    if not (title or "").strip():
        title = next((words for _, _, words in headings), None)
    sections = sections_of(body, headings)
    return Document(title_from(title, path), media_type, body, sections, counted="paragraphs")


def _paragraphs(body: LexborNode) -> list[tuple[str, str]]:
    """Return (tag, words) of each run of text that has the same block around it."""
    found: list[tuple[str, list[str]]] = []
    present = 0
    for node in body.traverse(include_text=True):
        if node.tag == "br" and found:
            found[-1][1].append("\n")
        if node.tag != "-text":
            continue
        block = _block_around(node)
        if block.mem_id != present:
            found.append((block.tag or "", []))
            present = block.mem_id
        found[-1][1].append(node.text_content or "")
    tidy = ((tag, _tidy("".join(words), keep_lines=tag == "pre")) for tag, words in found)
    return [(tag, words) for tag, words in tidy if words]


def _block_around(node: LexborNode) -> LexborNode:
    block = node
    while block.parent is not None and block.tag not in BLOCKS:
        block = block.parent
    return block


def _tidy(words: str, *, keep_lines: bool) -> str:
    return words.strip("\n") if keep_lines else re.sub(r"\s+", " ", words).strip()
