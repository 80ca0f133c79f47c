"""`uait vault` and `uait audit`: values from standard input, never from an argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.unit.vault.state import CANARY, opened
from uait_server_ext.commands.audit import app as audit_app
from uait_server_ext.commands.vault import app
from uait_server_ext.errors import InvalidInput, NotFound, SealBroken

Run = Callable[..., Result]


@pytest.fixture
def uait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs `uait vault` on a state of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: str = "", command: Any = app) -> Result:
        result = CliRunner().invoke(
            command, ["--data-dir", str(tmp_path / "state"), *arguments], input=stdin
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_set_list_get_rotate_delete(uait: Run) -> None:
    assert uait("set", "openai", stdin=f"{CANARY}\n").stdout == "openai: created\n"
    assert uait("set", "openai", stdin=CANARY).stdout == "openai: unchanged\n"
    listed = uait("list").stdout
    assert "openai" in listed
    assert CANARY not in listed
    assert uait("get", "openai").stdout == f"{CANARY}\n"
    assert uait("rotate", "openai", stdin="second").stdout == "openai: version 2\n"
    assert uait("get", "openai").stdout == "second\n"
    assert uait("get", "openai", "--version", "1").stdout == f"{CANARY}\n"
    assert uait("delete", "openai", stdin="n\n").exit_code == 1
    assert uait("delete", "openai", "--yes").stdout == "openai: deleted\n"
    with pytest.raises(NotFound):
        uait("get", "openai")
    with pytest.raises(NotFound):
        uait("rotate", "openai", stdin="x")


def test_a_value_is_no_argument_and_an_empty_one_no_value(uait: Run) -> None:
    assert uait("set", "openai", CANARY).exit_code == 2
    with pytest.raises(InvalidInput, match="empty"):
        uait("set", "openai")
    with pytest.raises(InvalidInput) as caught:
        uait("set", "a b", stdin=CANARY)
    assert CANARY not in str(caught.value)


def test_rotate_master(uait: Run, tmp_path: Path) -> None:
    uait("set", "openai", stdin=CANARY)
    key = (tmp_path / "state/keys/master.key").read_bytes()
    assert "values" in uait("rotate-master").stdout
    assert (tmp_path / "state/keys/master.key").read_bytes() != key
    assert uait("get", "openai").stdout == f"{CANARY}\n"
    assert "vault.rotate-master" in uait("export", command=audit_app).stdout


def test_audit_verify_and_accept(uait: Run, tmp_path: Path) -> None:
    uait("set", "openai", stdin=CANARY)
    assert "All 1 events hold" in uait("verify", command=audit_app).stdout
    with opened(tmp_path / "state") as state:
        state.sql("DELETE FROM audit_events")
    cut = uait("verify", command=audit_app)
    assert cut.exit_code == 1
    assert "cut off" in cut.stdout
    assert "accepted" in uait("accept-restore", "--yes").stdout
    assert uait("verify", command=audit_app).exit_code == 0


def test_a_restore_of_some_rows_can_be_accepted(uait: Run, tmp_path: Path) -> None:
    uait("set", "openai", stdin=CANARY)
    uait("set", "other", stdin="x")
    with opened(tmp_path / "state") as state:
        (row,) = state.rows("SELECT id FROM secrets WHERE name = 'other'")
        name = f"secret:{row[0]}:1"
        assert state.sql("DELETE FROM sealed_values WHERE name = :name", name=name) == 1
    with pytest.raises(SealBroken, match="accept-restore"):
        uait("get", "openai")
    uait("accept-restore", "--yes")
    assert uait("get", "openai").stdout == f"{CANARY}\n"
    with pytest.raises(NotFound):
        uait("get", "other")


def test_migrate_takes_the_env_file_beside(
    uait: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={CANARY}\nDEBUG=1\n")
    (tmp_path / ".zshrc").write_text("export HF_TOKEN=hf\n")
    monkeypatch.setenv("HF_TOKEN", "hf")
    said = uait("migrate", "--remove").stdout
    assert "OPENAI_API_KEY: created, removed from the file" in said
    assert "still set: HF_TOKEN in " in said
    assert CANARY not in said
    assert (tmp_path / ".env").read_text() == "DEBUG=1\n"
    again = uait("migrate", "--remove").stdout
    assert "HF_TOKEN: unchanged" in again
    assert "OPENAI_API_KEY" not in again
    with pytest.raises(NotFound):
        uait("migrate", "--env-file", "none.env")
