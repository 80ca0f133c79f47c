"""The frame of every output: escaping, one small style sheet, tables.

Colours are inherited, or come from JupyterLab's variables with a fallback, so that light and dark
themes, VS Code and exported pages all show readable text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

STYLE = """<style>
.uait{color:inherit;font-family:inherit;line-height:1.5}
.uait>:not(table){max-width:62em}
.uait blockquote.uait-extract{margin:.2em 0 .6em;padding:.2em .9em;color:inherit;background:none;
border-left:3px solid var(--jp-brand-color1,#1976d2)}
.uait .uait-dim{opacity:.75;font-size:.9em;margin:.4em 0}
.uait .uait-mark{border-left:3px solid var(--jp-warn-color1,#b26a00);margin:.4em 0;
padding:.1em .6em}
.uait ol.uait-sources{margin:.4em 0;padding-left:1.8em;font-size:.92em}
.uait pre{overflow-x:auto;background:var(--jp-layout-color2,rgba(127,127,127,.12));padding:.5em}
.uait.uait table{border-collapse:collapse;margin:.3em 0;color:inherit;background:none}
.uait.uait th,.uait.uait td{text-align:left;vertical-align:top;padding:.2em .7em;color:inherit;
white-space:pre-wrap;overflow-wrap:break-word;max-width:40em;
border-bottom:1px solid var(--jp-border-color2,rgba(127,127,127,.35))}
.uait.uait td.uait-number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.uait.uait table.uait-list td:first-child{white-space:nowrap}
.uait progress{width:16em;max-width:100%;vertical-align:middle}
</style>"""


# All but tab and line feed, and halves of surrogate pairs, which cannot be written at all.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """HTML that is safe already; any other string is escaped where it is put into a page."""

    __slots__ = ()


def clean(text: str) -> str:
    """Return text without control characters: none may reach a terminal or a page."""
    return CONTROL.sub("", text)


def escape(text: str) -> Markup:
    """Return any text as HTML that shows just that text."""
    return text if isinstance(text, Markup) else Markup(html.escape(clean(text)))


def element(tag: str, *content: str, **attributes: str | int) -> Markup:
    """Return one element; its content is escaped unless it is Markup, `class_` names a class."""
    written = "".join(
        f' {name.rstrip("_")}="{html.escape(clean(str(value)))}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{written}>{''.join(map(escape, content))}</{tag}>")


def page(*parts: str) -> str:
    """Return the parts as one output."""
    return f'{STYLE}<div class="uait">{"".join(map(escape, parts))}</div>'


def file_name(path: str) -> Markup:
    """Return a path that keeps its order of letters, whatever direction they are written in."""
    return element("bdi", path, class_="mathjax_ignore")


def table(headers: Sequence[str], rows: Iterable[Sequence[str | int | float | Markup]]) -> Markup:
    """Return an HTML table; numbers stand to the right, text keeps its line breaks."""
    head = element("tr", *(element("th", name, scope="col") for name in headers))
    body = [element("tr", *(_cell(value) for value in row)) for row in rows]
    return element("table", element("thead", head), element("tbody", *body), class_="uait-list")


def _cell(value: str | int | float | Markup) -> Markup:
    if isinstance(value, str):
        return element("td", value, class_="mathjax_ignore")
    return element("td", number(value), class_="uait-number")


def plain_table(headers: Sequence[str], rows: Iterable[Sequence[str | int | float]]) -> str:
    """Return a table of aligned columns for a terminal; a cell stays on one line."""
    lines = [list(headers)]
    for row in rows:
        lines.append([" ".join(clean(v).split()) if isinstance(v, str) else number(v) for v in row])
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def number(value: int | float) -> str:
    """Return a number as people read it: thousands apart, two decimals."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit in ("B", "kB") else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def one_paragraph(text: str) -> str:
    """Return a quotation without the line breaks of its document."""
    return " ".join(text.split())


def shorten(text: str, limit: int) -> str:
    """Return text cut at a word, with an ellipsis where something is missing."""
    text = text.strip()
    if len(text) <= limit:
        return text
    cut = text[:limit].rsplit(maxsplit=1)[0]
    return f"{cut} …"
