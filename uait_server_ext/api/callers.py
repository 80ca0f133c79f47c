"""The caller of an operation, as routing knows callers."""

from __future__ import annotations

from pathlib import Path

from uait_server_ext.routing.models import Caller

from .operation import Call


def caller_of(call: Call, *, collection: str | None = None) -> Caller:
    """Return whose request a call is: what budgets, fairness and the cache go by.

    Notebook and run are what the client says. It could say another one or none, and then meets the
    budgets of its principal, which nobody chooses.
    """
    request = call.request
    return Caller(
        call.principal.id,
        notebook=within(request.notebook, call.services.settings.root_dir),
        run=request.run,
        collection=collection,
    )


def within(notebook: str | None, root: Path) -> str | None:
    """Return a notebook's path as people see it: below the server's root, where it is there."""
    if notebook is None or not notebook.startswith("/"):
        return notebook
    path = Path(notebook)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else notebook
