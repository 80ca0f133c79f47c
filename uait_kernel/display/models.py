"""How the list of models looks."""

from __future__ import annotations

from uait_kernel.results.models import Model, Models
from uait_kernel.results.shown import Bundle

from .page import clean, element, page, plain_table, size, table

HEADERS = ("model", "kind", "state", "runs on", "context", "memory", "licence", "remarks")


def models_bundle(models: Models) -> Bundle:
    """Return the models as a table."""
    if not models:
        nothing = "The server's catalogue lists no model."
        return Bundle(page(element("p", nothing)), clean(nothing))
    rows = [_row(model) for model in models]
    return Bundle(page(table(HEADERS, rows)), plain_table(HEADERS, rows))


def _row(model: Model) -> tuple[str | int, ...]:
    remarks = [part for part in (model.description, model.note) if part]
    if model.default and model.kind == "chat":
        remarks.insert(0, "The default (auto).")
    return (
        model.id,
        model.kind,
        model.state,
        model.backend or "",
        model.context_tokens,
        size(model.memory_bytes),
        model.licence,
        " ".join(remarks),
    )
