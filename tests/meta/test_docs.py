"""The documentation is complete, current, and every command in it works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from uait_server_ext.api.v1 import operations
from uait_server_ext.app import UaitApp
from uait_server_ext.cli import app
from uait_server_ext.identity.principal import PERMISSIONS
from uait_server_ext.workflows.server import OwnServer

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Run by tests of their own: tests/notebooks/test_make.py, and this suite is `make test`.
MAKE_TARGETS = {"make lab", "make demo", "make test"}


def blocks(language: str) -> list[tuple[str, list[str]]]:
    return [
        (str(page.relative_to(REPOSITORY)), found)
        for page in PAGES
        if (found := [b for kind, b in BLOCK.findall(page.read_text("utf-8")) if kind == language])
    ]


def test_everything_public_is_documented() -> None:
    missing = [
        name
        for name in (
            *(f"{op.method} /uait/v1{op.path}" for op in operations()),
            *(f"UaitApp.{name}" for name in UaitApp.class_own_traits(config=True)),
            *PERMISSIONS,
            *(
                f"uait {c.name or c.callback.__name__}"
                for c in app.registered_commands
                if c.callback
            ),
            "uait models list",
            "uait models pull",
            "%%ask",
            "%kb add",
            "%kb search",
            "%kb status",
            "%kb resume",
            "%models",
        )
        if name not in TEXT
    ]
    assert not missing


def test_generated_parts_are_current() -> None:
    pages = [str(page) for page in PAGES]
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "-I", "docs", *pages],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"run `make docs`\n{done.stdout}{done.stderr}"


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


@pytest.fixture
def environment(uait_server: OwnServer) -> dict[str, str]:
    return {
        **os.environ,
        "UAIT_URL": uait_server.url,
        "UAIT_TOKEN": uait_server.token,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("page", "found"), blocks("sh"))
def test_shell_commands_work(
    page: str, found: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "notebooks").symlink_to(REPOSITORY / "notebooks")
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    for block in found:
        lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
        if any(line.startswith("make ") for line in lines):
            assert {line for line in lines if line} <= MAKE_TARGETS
            continue
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page}: {block}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "found"), blocks("python"))
def test_notebook_cells_work(page: str, found: list[str], environment: dict[str, str]) -> None:
    """Run a page's cells in order, as its reader would."""
    import nbformat
    from nbclient import NotebookClient

    nb = nbformat.v4.new_notebook()
    opening = found if "%load_ext" in found[0] else ["%load_ext uait_kernel", *found]
    nb.cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in opening]
    client = NotebookClient(nb, timeout=120, resources={"metadata": {"path": str(REPOSITORY)}})
    client.execute(env=environment)
    assert all(cell.execution_count for cell in nb.cells)


def test_the_description_that_the_typed_client_comes_from_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uait_server_ext.api.openapi"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    committed = (REPOSITORY / "labextension" / "openapi.json").read_text("utf-8")
    assert json.loads(done.stdout) == json.loads(committed), "run `make openapi`"
