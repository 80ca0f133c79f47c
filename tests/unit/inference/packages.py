"""Small registry packages that carry a model, and modules that seem not to be installed."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest

from uait_server_ext.inference.catalogue import CatalogueEntry, Package, PackageFile


def package_entry(model: str, contents: dict[str, bytes], *, name: str = "tiny") -> CatalogueEntry:
    """Return the entry of a model whose files are these, in the package ``NAME==1.0``."""
    files = tuple(
        PackageFile(
            member=f"{name}/{file}",
            name=file,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        for file, data in contents.items()
    )
    return CatalogueEntry(
        id=model,
        kind="chat",
        format="gguf",
        description="For a test.",
        licence="BSD-3-Clause",
        size_bytes=sum(file.size for file in files),
        memory_bytes=1,
        context_tokens=16,
        package=Package(name=name, version="1.0", files=files),
    )


def write_wheel(folder: Path, contents: dict[str, bytes], *, name: str = "tiny") -> Path:
    """Write a wheel ``NAME==1.0`` that holds these files in its package."""
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, data in contents.items():
            archive.writestr(f"{name}/{file}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let modules seem not to be installed."""
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in names else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
