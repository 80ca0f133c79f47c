"""Which variables are secrets, how `.env` files are read, and that migration may be repeated."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vault.state import ADA, State
from uait_server_ext.errors import InvalidInput, NotFound
from uait_server_ext.vault.environment import assignments, is_secret, read_env_file, without
from uait_server_ext.vault.migrate import migrate

run = asyncio.run

ENV = """\
# providers
OPENAI_API_KEY=sk-plain   # a comment
export ANTHROPIC_API_KEY='single $quoted # not a comment'
HF_TOKEN="double \\"quoted\\"\\nsecond line"
DATABASE_URL=postgresql://ada:pa%3Dss@db/app
REDIS_URL=redis://cache/0
PRIVATE_KEY="-----BEGIN
line
-----END"
LOG_LEVEL=debug
DERIVED_TOKEN=${HF_TOKEN}-x
EMPTY_API_KEY=
UAIT_TOKEN=ours
"""


def test_an_env_file_is_read_as_a_shell_would() -> None:
    found = {a.name: a.value for a in assignments(ENV)}
    assert found == {
        "OPENAI_API_KEY": "sk-plain",
        "ANTHROPIC_API_KEY": "single $quoted # not a comment",
        "HF_TOKEN": 'double "quoted"\nsecond line',
        "DATABASE_URL": "postgresql://ada:pa%3Dss@db/app",
        "REDIS_URL": "redis://cache/0",
        "PRIVATE_KEY": "-----BEGIN\nline\n-----END",
        "LOG_LEVEL": "debug",
        "EMPTY_API_KEY": "",
        "UAIT_TOKEN": "ours",
    }


def test_only_what_is_named_is_taken_out() -> None:
    left = without(ENV, ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "PRIVATE_KEY"])
    assert left == (
        "# providers\n"
        "DATABASE_URL=postgresql://ada:pa%3Dss@db/app\n"
        "REDIS_URL=redis://cache/0\n"
        "LOG_LEVEL=debug\n"
        "DERIVED_TOKEN=${HF_TOKEN}-x\n"
        "EMPTY_API_KEY=\n"
        "UAIT_TOKEN=ours\n"
    )
    assert without("A_TOKEN=1\r\nB=2\r\n", ["A_TOKEN"]) == "B=2\r\n"
    assert without("A_TOKEN=1", ["A_TOKEN"]) == ""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OPENAI_API_KEY", "x", True),
        ("openai_api_key", "x", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("GITHUB_TOKEN", "x", True),
        ("PGPASSWORD", "x", False),
        ("DB_PASSWORD", "x", True),
        ("MONGO", "mongodb://u:p@h/d", True),
        ("MONGO", "mongodb://h/d", False),
        ("BAD_URL", "http://[", False),
        ("TOKENIZERS_PARALLELISM", "true", False),
        ("MAX_TOKENS", "5", False),
        ("PATH", "/bin", False),
        ("OPENAI_API_KEY", "", False),
        ("UAIT_TOKEN", "x", False),
        ("JUPYTERHUB_API_TOKEN", "x", False),
    ],
)
def test_what_is_a_secret(name: str, value: str, expected: bool) -> None:
    assert is_secret(name, value) is expected


@given(st.text("ABK_=#'\"\\${} \n\r\tx", max_size=60))
def test_any_text_is_read_and_nothing_else_is_lost(text: str) -> None:
    found = assignments(text)
    assert without(text, []) == text
    left = without(text, [a.name for a in found])
    removed = sum(a.end - a.start for a in found)
    assert len(left) == len(text) - removed


def test_migration_imports_removes_reports_and_may_be_repeated(
    state: State, tmp_path: Path
) -> None:
    file = tmp_path / "project.env"
    file.write_text(ENV)
    file.chmod(0o640)
    (tmp_path / ".bashrc").write_text("alias x=y\nexport GITHUB_TOKEN=abc\n")
    environ = {"GITHUB_TOKEN": "ghp", "OPENAI_API_KEY": "older", "HOME": "/x"}

    done = run(
        migrate(state.vault, ADA, env_file=file, remove=False, environ=environ, home=tmp_path)
    )
    names = [
        "ANTHROPIC_API_KEY",
        "DATABASE_URL",
        "GITHUB_TOKEN",
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "PRIVATE_KEY",
    ]
    assert done.outcomes == dict.fromkeys(names, "created")
    assert done.removed == []
    assert done.in_profiles == [(str(tmp_path / ".bashrc"), 2, "GITHUB_TOKEN")]
    assert file.read_text() == ENV
    assert run(state.vault.reveal(ADA, "OPENAI_API_KEY")).value == "sk-plain"
    assert run(state.vault.reveal(ADA, "GITHUB_TOKEN")).value == "ghp"

    again = run(migrate(state.vault, ADA, env_file=file, remove=True, environ={}, home=tmp_path))
    assert set(again.outcomes.values()) == {"unchanged"}
    assert again.removed == [name for name in names if name != "GITHUB_TOKEN"]
    assert "sk-plain" not in file.read_text()
    assert "LOG_LEVEL=debug" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    third = run(migrate(state.vault, ADA, env_file=file, remove=True, environ={}, home=tmp_path))
    assert third.outcomes == {}
    assert run(state.vault.secret(ADA, "OPENAI_API_KEY")).version == 1


def test_the_server_s_environment_is_scrubbed_of_what_the_vault_has(state: State) -> None:
    environ = {"OPENAI_API_KEY": "x", "OTHER_API_KEY": "y", "PATH": "/bin"}
    run(migrate(state.vault, ADA, env_file=None, remove=False, environ={"OPENAI_API_KEY": "x"}))
    assert run(state.vault.scrub(environ)) == ["OPENAI_API_KEY"]
    assert environ == {"OTHER_API_KEY": "y", "PATH": "/bin"}
    assert run(state.vault.scrub(environ)) == []


def test_a_file_that_is_none_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_env_file(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput):
        read_env_file(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InvalidInput):
        read_env_file(tmp_path / "large")
