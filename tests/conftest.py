"""Shared fixtures: model cache, isolated Jupyter folders, servers in and beside this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uait_server_ext.paths import MODEL_CACHE_VARIABLE, default_model_cache
from uait_server_ext.workflows.server import OwnServer, own_server

pytest_plugins = ("pytest_jupyter.jupyter_server",)

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"


# What takes longest in one piece, first: so that both workers have work up to the end.
FIRST = ("meta", "notebooks", "ui", "faults", "kernel", "security", "http", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the folders of tests; those of one file stay together, in their order."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        path = item.path
        folder = path.relative_to(tests).parts[0] if path.is_relative_to(tests) else ""
        return FIRST.index(folder) if folder in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Take SIGINT again where the shell that runs the tests in the background ignores it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """Return the folder with both embedded models; pull them once where they are missing."""
    from uait_server_ext.inference.cache import ModelCache
    from uait_server_ext.inference.catalogue import Catalogue

    root = default_model_cache()
    root.mkdir(parents=True, exist_ok=True)
    cache = ModelCache(root)
    for entry in Catalogue.load().embedded():
        cache.pull(entry)
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real test data beside the repository, or skip."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def jupyter_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Point Jupyter's folders of this process and its children at temporary ones."""
    base = tmp_path_factory.mktemp("jupyter")
    variables = {
        "JUPYTER_CONFIG_DIR": str(base / "config"),
        "JUPYTER_DATA_DIR": str(base / "data"),
        "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
        "IPYTHONDIR": str(base / "ipython"),
        MODEL_CACHE_VARIABLE: str(default_model_cache()),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield variables
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def uait_server(
    model_cache: Path,
    jupyter_folders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnServer]:
    """Run a real server in its own process, with real models; `.url` and `.token`."""
    root = tmp_path_factory.mktemp("server-root")
    options = {
        "data_dir": str(root / "state"),
        "knowledge_roots": [str(tmp_path_factory.getbasetemp()), str(REPOSITORY)],
    }
    with own_server(root, options=options, log=root / "server.log") as server:
        yield server


@pytest.fixture
def start_server(jupyter_folders: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """Return `own_server` bound to this test's folder, for tests that kill or configure it."""

    def start(**options: Any) -> Any:
        settings = {"data_dir": str(tmp_path / "state"), "knowledge_roots": [str(tmp_path)]}
        return own_server(tmp_path, options=settings | options, log=tmp_path / "server.log")

    return start


@pytest.fixture
def jp_server_config(jp_root_dir: Path, model_cache: Path) -> dict[str, Any]:
    """Configure the in-process server of pytest-jupyter: UAIT on, every route closed."""
    return {
        "ServerApp": {
            "jpserver_extensions": {"uait_server_ext": True},
            "allow_unauthenticated_access": False,
        },
        "UaitApp": {
            "data_dir": str(jp_root_dir / "state"),
            "model_cache": str(model_cache),
            "knowledge_roots": [str(jp_root_dir)],
        },
    }
