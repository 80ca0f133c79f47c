"""`uait models` on a model cache, as whoever operates the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.inference.model_folders import adapter_folder, chat_folder
from uait_server_ext.commands.models import app
from uait_server_ext.errors import Conflict, InvalidInput, ModelNotFound, UaitError
from uait_server_ext.inference.library import Library
from uait_server_ext.paths import MODEL_CACHE_VARIABLE

Models = Callable[..., Result]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    environment = {"COLUMNS": "200", MODEL_CACHE_VARIABLE: str(tmp_path / "models")}

    def invoke(*words: str, input: str | None = None) -> Result:
        return CliRunner().invoke(app, list(words), input=input, env=environment)

    return invoke


def said(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(result: Result) -> UaitError:
    assert isinstance(result.exception, UaitError), result.output
    return result.exception


def test_a_model_comes_is_listed_and_goes(models: Models, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "Tiny")
    assert "echo" in said(models("list"))
    made = said(models("import", str(folder), "--licence", "MIT"))
    assert made == "tiny: imported, 0 MB; good for chat tools; licence MIT"
    Library.open(tmp_path / "models").register_adapter(
        "tiny", "polite", adapter_folder(tmp_path / "made"), {}
    )
    listed = said(models("list"))
    assert "tiny" in listed
    assert "tiny+polite" in listed
    assert isinstance(refused(models("import", str(folder))), Conflict)
    assert isinstance(refused(models("remove", "tiny", "--yes")), Conflict)
    said(models("remove", "tiny+polite", "--yes"))
    assert models("remove", "tiny", input="n\n").exit_code == 1
    assert "removed" in said(models("remove", "tiny", input="y\n"))
    assert "tiny" not in said(models("list"))


def test_a_pull_says_what_it_did(models: Models) -> None:
    assert said(models("pull", "echo")) == "echo: already here"
    assert isinstance(refused(models("pull", "nothing")), ModelNotFound)


def test_what_cannot_be_imported_is_refused(models: Models, tmp_path: Path) -> None:
    assert isinstance(refused(models("import", str(tmp_path / "absent"))), InvalidInput)


def test_bench_prints_its_figures(models: Models) -> None:
    shown = said(models("bench", "echo", "--rounds", "1", "--max-tokens", "3"))
    for name in ("load", "prompt speed", "first token", "decode speed", "memory"):
        assert name in shown
    assert "tokens/s" in shown


def test_loading_needs_a_server(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAIT_URL", "http://127.0.0.1:9")
    result = models("load", "echo")
    assert result.exit_code == 3
