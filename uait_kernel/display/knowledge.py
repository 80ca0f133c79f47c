"""How hits, collections and ingests look."""

from __future__ import annotations

from uait_kernel.results.knowledge import (
    Collections,
    CollectionStatus,
    Hit,
    Hits,
    IngestSummary,
    UnfinishedFile,
)
from uait_kernel.results.shown import Bundle

from .page import (
    Markup,
    clean,
    element,
    escape,
    file_name,
    number,
    page,
    plain_table,
    shorten,
    size,
    table,
)

HIT_CHARACTERS = 400
FILES_LISTED = 20
COUNTS = ("added", "changed", "unchanged", "removed")


def hits_bundle(hits: Hits) -> Bundle:
    """Return hits as a table, best first."""
    if not hits:
        nothing = f"Nothing in '{hits.collection}' matches “{hits.query}”."
        return Bundle(page(element("p", nothing)), clean(nothing))
    rows = [
        (rank, _where(hit), shorten(hit.text, HIT_CHARACTERS), hit.score)
        for rank, hit in enumerate(hits, 1)
    ]
    lines = [
        f"{rank}. {hit.path}{', ' * bool(hit.place.label)}{hit.place.label} ({hit.score:.2f})\n"
        f"   {' '.join(shorten(hit.text, HIT_CHARACTERS).split())}"
        for rank, hit in enumerate(hits, 1)
    ]
    return Bundle(page(table(("#", "where", "text", "score"), rows)), clean("\n".join(lines)))


def _where(hit: Hit) -> Markup:
    place = element("div", hit.place.label, class_="uait-dim")
    return Markup(element("span", file_name(hit.path), title=hit.title or hit.path) + place)


def status_bundle(status: CollectionStatus) -> Bundle:
    """Return a collection's numbers, what is left to do and what could not be read."""
    rows = [
        ("documents", number(status.documents)),
        ("passages", number(status.chunks)),
        ("embedding model", status.embedding_model),
        ("on disk", size(status.disk_bytes)),
        ("sources", "\n".join(status.sources)),
        ("left to do", number(len(status.pending))),
        ("not readable", number(len(status.failed))),
    ]
    left = _left_to_do(status)
    headers = ("collection", status.name)
    html = page(
        table(headers, rows),
        *([element("p", left, class_="uait-mark")] if left else []),
        _files_html("Left to do", status.pending),
        _files_html("Not readable", status.failed),
    )
    plain = [
        plain_table(headers, rows),
        left,
        _files_plain("Left to do", status.pending),
        _files_plain("Not readable", status.failed),
    ]
    return Bundle(html, clean("\n\n".join(part for part in plain if part)))


def _left_to_do(status: CollectionStatus) -> str:
    """Return one sentence on what goes on or waits."""
    if status.ingesting:
        return "Files are being added just now."
    if status.pending:
        return f"Not all is done: `%kb resume -c {status.name}` goes on with the rest."
    return ""


def collections_bundle(collections: Collections) -> Bundle:
    """Return all collections as a table."""
    if not collections:
        nothing = "There is no collection yet: %kb add PATH makes one."
        return Bundle(page(element("p", nothing)), nothing)
    headers = ("collection", "documents", "passages", "left to do", "not readable", "on disk")
    rows = [
        (
            status.name,
            status.documents,
            status.chunks,
            len(status.pending),
            len(status.failed),
            size(status.disk_bytes),
        )
        for status in collections
    ]
    return Bundle(page(table(headers, rows)), plain_table(headers, rows))


def ingest_bundle(summary: IngestSummary) -> Bundle:
    """Return what an ingest did so far, or in all; no times, so that outputs can be compared."""
    sentence = ingest_sentence(summary)
    if summary.state == "running":
        bar = element("progress", value=summary.reported, max=max(1, summary.files))
        return Bundle(page(element("p", bar, f" {sentence}")), clean(sentence))
    html = page(element("p", sentence), _files_html("Not readable", summary.failed))
    plain = [sentence, _files_plain("Not readable", summary.failed)]
    return Bundle(html, clean("\n".join(part for part in plain if part)))


def ingest_sentence(summary: IngestSummary) -> str:
    """Return an ingest in one line."""
    name = summary.collection
    if summary.state == "running":
        if not summary.reported:
            return f"Adding to '{name}': looking for files"
        return f"Adding to '{name}': {summary.reported} of {summary.files}, {summary.latest}"
    counts = [f"{count} {word}" for word in COUNTS if (count := getattr(summary, word))]
    if summary.failed:
        counts.append(f"{len(summary.failed)} not readable")
    counted = ", ".join(counts) or "no file"
    if summary.state == "done":
        return f"'{name}': {counted}."
    began = "Stopped" if summary.state == "stopped" else "Broken off"
    return (
        f"{began} after {summary.reported} of {summary.files} files; '{name}': {counted}. "
        f"`%kb resume -c {name}` goes on."
    )


def _files_html(heading: str, files: tuple[UnfinishedFile, ...]) -> Markup:
    """Return a list of files with their reasons; nothing for no files."""
    if not files:
        return Markup("")
    items = [
        element("li", file_name(file.path), f": {file.error}" if file.error else "")
        for file in files[:FILES_LISTED]
    ]
    more = _more(files)
    return Markup(
        element("p", f"{heading}:")
        + element("ul", *items)
        + (element("p", more, class_="uait-dim") if more else escape(""))
    )


def _files_plain(heading: str, files: tuple[UnfinishedFile, ...]) -> str:
    if not files:
        return ""
    lines = [
        f"  {file.path}{f': {file.error}' if file.error else ''}" for file in files[:FILES_LISTED]
    ]
    more = _more(files)
    return "\n".join([f"{heading}:", *lines, *([f"  {more}"] if more else [])])


def _more(files: tuple[UnfinishedFile, ...]) -> str:
    hidden = len(files) - FILES_LISTED
    return f"and {hidden} more" if hidden > 0 else ""
