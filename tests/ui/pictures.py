"""Pictures of pages, which people look at after the browser tests."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Page

from tests.conftest import REPOSITORY


def pictures() -> Path:
    """Return the folder of the pictures."""
    folder = Path(os.environ.get("UAIT_SCREENSHOTS", REPOSITORY / "test-results"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def picture(page: Page, name: str) -> None:
    """Keep what a page shows now."""
    page.screenshot(path=pictures() / f"{name}.png")
