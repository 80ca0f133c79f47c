"""Model text as HTML that can do nothing: Markdown without raw HTML, then an allow-list.

Two walls, because either alone has had holes: markdown-it-py writes no HTML of the text's own, and
nh3 lets only plain formatting through. Links lead to http, https or mailto and nowhere else; no
image is loaded, since its address alone could carry text of a conversation away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from .page import Markup, clean, element, escape

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

BLOCKS = {"p", "br", "hr", "h4", "h5", "h6", "pre", "blockquote", "ul", "ol", "li"}
TABLES = {"table", "thead", "tbody", "tr", "th", "td"}
TAGS = frozenset({"strong", "em", "s", "code", "a"} | BLOCKS | TABLES)
LINK_SCHEMES = frozenset({"http", "https", "mailto"})
# Longer text is shown as it is: hostile text of this length takes seconds to parse.
LONGEST_MARKDOWN = 50_000


def render_markdown(text: str) -> Markup:
    """Return a model's Markdown as safe HTML."""
    import nh3

    if len(text) > LONGEST_MARKDOWN:
        return element("pre", text)
    return Markup(
        nh3.clean(
            _markdown().render(clean(text)),
            tags=set(TAGS),
            attributes={"a": {"href", "title"}, "ol": {"start"}},
            attribute_filter=_absolute_links_only,
            url_schemes=set(LINK_SCHEMES),
            link_rel="noopener noreferrer nofollow",
            set_tag_attribute_values={"a": {"target": "_blank"}},
        )
    )


def _absolute_links_only(tag: str, attribute: str, value: str) -> str | None:
    """Drop links without a scheme: in Jupyter they would lead to the server's own pages."""
    if attribute != "href":
        return value
    scheme, colon, _ = value.partition(":")
    return value if colon and scheme.lower() in LINK_SCHEMES else None


@cache
def _markdown() -> MarkdownIt:
    """Return the parser, which holds no state between texts."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.add_render_rule("image", _image_as_text)
    parser.core.ruler.push("small_headings", _small_headings)
    return parser


def _image_as_text(renderer: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    """Name an image instead of loading it."""
    return str(escape(f"[image: {tokens[index].content or 'no description'}]"))


def _small_headings(state: Any) -> None:
    """Make headings smaller than any of the notebook's own."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
