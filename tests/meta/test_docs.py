"""The documentation is complete, current, and every command in it works."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config
from typer.main import get_command

from tests.conftest import REPOSITORY
from tests.security.conftest import IdentityServer, identity_server, user_maker
from uait_server_ext import errors
from uait_server_ext.api.openai import operations as openai_operations
from uait_server_ext.api.v1 import operations
from uait_server_ext.app import UaitApp
from uait_server_ext.cli import app
from uait_server_ext.identity.oidc.configuration import ProviderConfig, read_providers
from uait_server_ext.identity.principal import PERMISSIONS, ROLES, Principal
from uait_server_ext.identity.token_models import ApiKeyRequest
from uait_server_ext.paths import default_model_cache
from uait_server_ext.workflows.server import OwnServer

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Run by tests of their own: tests/notebooks/test_make.py, and this suite is `make test`.
MAKE_TARGETS = {"make lab", "make demo", "make test"}
# A Python block that begins so is a configuration file, not a notebook's cell.
CONFIGURATION = re.compile(r"# jupyter\w*_config\.py\n")
# What the reader of these pages has: a server with UAIT's login and a key of its administrator; or
# the state of a server that does not run. The other pages are about what needs no more than any
# server with UAIT.
ABOUT_PEOPLE = {"docs/users/account.md", "docs/operators/identity.md", "docs/developers/api.md"}
ABOUT_STATE = {"docs/operators/vault.md", "docs/operators/routing.md"}
ABOUT_TUNING = {"docs/users/tuning.md"}  # which leaves an adapter behind

Environment = Callable[[str], dict[str, str]]


def blocks(language: str) -> list[tuple[str, list[str]]]:
    return [
        (str(page.relative_to(REPOSITORY)), found)
        for page in PAGES
        if (
            found := [
                block
                for kind, block in BLOCK.findall(page.read_text("utf-8"))
                if kind == language and not CONFIGURATION.match(block)
            ]
        )
    ]


def commands(group: Any, *words: str) -> Iterator[str]:
    """Yield every command and sub-command as it is typed."""
    for name, command in group.commands.items():
        yield " ".join((*words, name))
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)


def variables() -> set[str]:
    """Return the environment variables of our own that the code names."""
    found = (
        re.findall(r'"(UAIT_[A-Z_]+[A-Z])"', path.read_text("utf-8"))
        for package in ("uait_server_ext", "uait_kernel")
        for path in (REPOSITORY / package).rglob("*.py")
    )
    return {name for names in found for name in names}


def test_everything_public_is_documented() -> None:
    missing = [
        name
        for name in (
            *(f"{op.method} /uait/v1{op.path}" for op in operations()),
            *(op.key for op in openai_operations()),
            *(f"UaitApp.{name}" for name in UaitApp.class_own_traits(config=True)),
            *PERMISSIONS,
            *(f"`{role}`" for role in ROLES),
            *(f"`{kind.code}`" for kind in vars(errors).values() if hasattr(kind, "code")),
            *commands(get_command(app), "uait"),
            *(f"`{name}`" for name in ProviderConfig.model_fields),
            *variables(),
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


def anchors(page: Path) -> set[str]:
    """Return the places in a page that a link can name, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target, place in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
            there = page.parent / target if target else page
            if "://" in target:
                continue
            if not there.exists() or (place and place not in anchors(there)):
                broken.append(f"{page.name}: {target}#{place}")
    assert not broken


def test_configuration_files_are_understood() -> None:
    """Read every block that is a configuration file as the server would."""
    files = [
        block
        for page in PAGES
        for kind, block in BLOCK.findall(page.read_text("utf-8"))
        if kind == "python" and CONFIGURATION.match(block)
    ]
    assert files
    for block in files:
        config = Config()
        exec(compile(block, "configuration", "exec"), {"c": config})
        unknown = set(config.UaitApp) - set(UaitApp.class_own_traits(config=True))
        assert not unknown, block
        read_providers(UaitApp(config=config).oidc_providers)


def test_routing_files_are_understood() -> None:
    from uait_server_ext.routing.config import parse
    from uait_server_ext.routing.rules import read_policy

    files = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert files
    for block in files:
        file = parse(block)
        read_policy(file.policy, [tier.name for tier in file.tiers])


@pytest.fixture(scope="session")
def people_server(
    model_cache: Path, jupyter_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IdentityServer]:
    """Run a server with UAIT's login."""
    with identity_server(tmp_path_factory.mktemp("people")) as server:
        yield server


@pytest.fixture(scope="session")
def with_people(people_server: IdentityServer) -> dict[str, str]:
    """Return what an administrator's shell has: the server, its state, and a key that signs."""
    identity = people_server.identity
    admin = user_maker(people_server)("admin", username="grace")
    principal = Principal(id=admin.id, name=admin.username, permissions=ROLES["admin"])
    request = ApiKeyRequest(name="docs", permissions=list(PERMISSIONS), signing=True)
    made = asyncio.run(identity.api_keys.create(principal, request))
    return {
        "UAIT_URL": people_server.url.rstrip("/"),
        "UAIT_TOKEN": made.key,
        "UAIT_DATA_DIR": str(people_server.state),
        "SIGNING_KEY_ID": made.info.id,
        "SIGNING_SECRET": str(made.signing_secret),
    }


def own_models(folder: Path) -> Path:
    """Return a model cache whose models are those of this machine; what is added to it is not."""
    models = folder / "models"
    if models.exists():
        return models
    ignore = shutil.ignore_patterns("adapter-*", ".*")
    shutil.copytree(default_model_cache(), models, copy_function=os.symlink, ignore=ignore)
    return models


@pytest.fixture
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Environment:
    """Return a function that gives the environment in which a page's commands are run."""

    def of(page: str) -> dict[str, str]:
        if page in ABOUT_PEOPLE:
            own: dict[str, str] = request.getfixturevalue("with_people")
        elif page in ABOUT_STATE:
            request.getfixturevalue("jupyter_folders")
            own = {"UAIT_DATA_DIR": str(tmp_path / "state"), "HOME": str(tmp_path)}
        elif page in ABOUT_TUNING:
            own = {
                "UAIT_MODEL_CACHE": str(own_models(tmp_path)),
                "UAIT_DATA_DIR": str(tmp_path / "state"),
            }
        else:
            server: OwnServer = request.getfixturevalue("uait_server")
            own = {"UAIT_URL": server.url, "UAIT_TOKEN": server.token}
        return {
            **os.environ,
            **own,
            "NO_PROXY": "127.0.0.1,localhost",  # these clients know no better; UAIT's own does
            "no_proxy": "127.0.0.1,localhost",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("page", "found"), blocks("sh"))
def test_shell_commands_work(
    page: str, found: list[str], environment: Environment, tmp_path: Path
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
            env=environment(page),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page}: {block}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "found"), blocks("python"))
def test_notebook_cells_work(page: str, found: list[str], environment: Environment) -> None:
    """Run a page's cells in order, as its reader would."""
    import nbformat
    from nbclient import NotebookClient

    nb = nbformat.v4.new_notebook()
    opening = found if "%load_ext" in found[0] else ["%load_ext uait_kernel", *found]
    nb.cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in opening]
    client = NotebookClient(nb, timeout=120, resources={"metadata": {"path": str(REPOSITORY)}})
    client.execute(env=environment(page))
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
