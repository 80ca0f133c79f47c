"""nbval runs no fixtures, so the server for the notebooks starts with the session."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from uait_server_ext.workflows.server import own_server

resources = ExitStack()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start one server for all notebooks, on state of its own."""
    state = Path(resources.enter_context(tempfile.TemporaryDirectory()))
    os.environ["JUPYTER_RUNTIME_DIR"] = str(state / "runtime")
    options = {"data_dir": str(state), "knowledge_roots": [str(Path(__file__).parent.parent)]}
    os.environ["UAIT_URL"] = resources.enter_context(own_server(state, options=options)).url


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop it."""
    resources.close()
