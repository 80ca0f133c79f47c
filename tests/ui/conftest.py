"""A JupyterLab with UAIT and a collection of real documents, for a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.ui.browser import find_browser
from uait_kernel.client import Client
from uait_server_ext.workflows.server import OwnServer, own_server

# One long line, so that the echo model takes seconds to say it and can be stopped meanwhile.
LANTERN = (
    "The lantern of the north tower burns colza oil " + "and is lit again each night " * 16 + "."
)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Return the browser's path; without a browser the tests fail, they do not skip."""
    path = find_browser()
    assert path, "no Chromium found: run the tests with `make pytest`"
    return path


@pytest.fixture(scope="session")
def lab_server(
    model_cache: Path,
    jupyter_folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnServer]:
    """Run JupyterLab with the collection `docs` already ingested; `.url` and `.token`."""
    root = tmp_path_factory.mktemp("lab-root")
    documents = root / "documents"
    shutil.copytree(REPOSITORY / "notebooks" / "data" / "documents", documents)
    (documents / "lantern.txt").write_text(LANTERN)
    with own_server(root, options={"data_dir": str(root / "state")}, log=root / "log") as server:
        for _ in Client(server.url, server.token).ingest(str(documents), "docs"):
            pass
        yield server
