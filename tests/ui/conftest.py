"""A JupyterLab with UAIT and a collection of real documents, for a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

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


@pytest.fixture(autouse=True)
def jp_asyncio_loop() -> None:
    """Stand in for pytest-jupyter's loop: it would close Playwright's, which runs all along."""


@pytest.fixture(autouse=True)
def jp_server_cleanup() -> None:
    """Stand in for pytest-jupyter's clean-up of a server in this process: there is none."""


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    arguments = ["--disable-background-networking"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        yield browser
        browser.close()


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
