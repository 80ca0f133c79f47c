"""How an answer looks: the documents' own words first, then the model's, then the sources.

The plain form of a growing answer only ever grows at its end, so that a terminal can print it as
it comes. Neither form holds a time: saved outputs can be compared from run to run. Times are in
the output's metadata, with the note that a model wrote this.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from uait_kernel.results.answer import Answer
from uait_kernel.results.knowledge import Citation
from uait_kernel.results.shown import Bundle

from .markdown import render_markdown
from .page import Markup, clean, element, file_name, one_paragraph, page, shorten

ANSWER_MIME = "application/vnd.uait.answer+json"
QUOTE_CHARACTERS = 300
NOT_CHECKED = "In the model's words, not checked against the documents:"


def answer_bundle(answer: Answer) -> Bundle:
    """Return an answer as HTML, plain text and data, with its provenance."""
    return Bundle(
        html=page(*_html_parts(answer)),
        plain=answer_plain(answer),
        extra={ANSWER_MIME: _payload(answer)},
        metadata={"uait": _provenance(answer)},
    )


def answer_plain(answer: Answer) -> str:
    """Return an answer as text for a terminal, a diff or a log."""
    parts = [answer_body(answer), *(f"({mark})" for mark in _marks(answer))]
    if answer.citations and answer.state != "streaming":
        sources = (_source_line(citation) for citation in answer.citations)
        parts.append("\n".join(("Sources:", *sources)))
    return clean("\n\n".join(part for part in parts if part))


def answer_body(answer: Answer) -> str:
    """Return the words of an answer without its sources: the extract in quotes, then the rest."""
    if answer.extract is None:
        return answer.text
    parts = [f"“{one_paragraph(answer.extract)}”"]
    if answer.phrasing:
        parts += [NOT_CHECKED, answer.phrasing]
    return "\n\n".join(parts)


def _html_parts(answer: Answer) -> list[Markup]:
    parts: list[Markup] = []
    if answer.extract is None:
        parts.append(render_markdown(answer.text))
    else:
        extract = one_paragraph(answer.extract)
        parts.append(element("blockquote", extract, class_="uait-extract mathjax_ignore"))
        if answer.phrasing:
            parts.append(element("p", NOT_CHECKED, class_="uait-dim"))
            parts.append(render_markdown(answer.phrasing))
    if answer.state == "streaming":
        parts.append(element("p", "…", class_="uait-dim"))
    parts += [element("p", mark, class_="uait-mark") for mark in _marks(answer)]
    if answer.citations:
        parts.append(element("ol", *map(_source, answer.citations), class_="uait-sources"))
    if figures := _figures(answer):
        parts.append(element("p", figures, class_="uait-dim"))
    return parts


def _marks(answer: Answer) -> list[str]:
    """Return what a reader must know about this answer before trusting it."""
    marks = list(answer.notices) if answer.state != "streaming" else []
    if answer.state == "stopped":
        marks.append(
            "Stopped: this is only a part." if answer else "Stopped before the first word."
        )
    elif answer.state == "failed":
        marks.append(f"Broken off: this is only a part. {answer.error or ''}".strip())
    elif answer.finish_reason == "length":
        marks.append("Cut at the limit of tokens; --max-tokens raises it.")
    return marks


def _where(citation: Citation) -> str:
    return f", {citation.place.label}" if citation.place.label else ""


def _source(citation: Citation) -> Markup:
    """Return one citation as a list item that keeps its number."""
    text = shorten(one_paragraph(citation.quote), QUOTE_CHARACTERS)
    quote = element("q", text, class_="mathjax_ignore")
    title = citation.title or citation.path
    path = element("span", file_name(citation.path), title=title)
    return element("li", path, f"{_where(citation)} ", quote, value=citation.number)


def _source_line(citation: Citation) -> str:
    quote = shorten(one_paragraph(citation.quote), QUOTE_CHARACTERS)
    return f"[{citation.number}] {citation.path}{_where(citation)}: “{quote}”"


def _figures(answer: Answer) -> str:
    """Return which model wrote it, and its tokens."""
    if answer.model is None or answer.state == "streaming":
        return ""
    usage = answer.usage
    return f"{answer.model}, {usage.prompt_tokens:,} tokens in, {usage.completion_tokens:,} out"


def _payload(answer: Answer) -> dict[str, Any]:
    """Return the answer as data for other programs; without the question, which may hold values
    of variables that the notebook does not show, and without times."""
    left_out = {"question", "seconds", "first_token_seconds"}
    return {name: value for name, value in answer.json.items() if name not in left_out}


def _provenance(answer: Answer) -> dict[str, Any]:
    """Return the output's metadata: whether a model wrote it, which, and what it took."""
    written = answer.phrasing if answer.collection is not None else answer.text
    return {
        "generated": bool(written),
        "model": answer.model,
        "backend": answer.backend,
        "collection": answer.collection,
        "state": answer.state,
        "usage": asdict(answer.usage),
        "seconds": answer.seconds,
        "first_token_seconds": answer.first_token_seconds,
    }
