"""Tables and help texts of the documentation, made from the code (`make docs`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def operations() -> str:
    """Return every HTTP operation as a table."""
    from uait_server_ext.api.v1 import operations as declared

    rows = ["| operation | permission | answer | what it does |", "|---|---|---|---|"]
    for op in declared():
        answer = "events" if op.streams else "JSON" if op.response is not type(None) else "204"
        route = f"{op.method} /uait/v1{op.path}"
        rows.append(f"| `{route}` | `{op.permission}` | {answer} | {op.summary} |")
    return table(rows)


def permissions() -> str:
    """Return every permission as a table."""
    from uait_server_ext.identity.principal import PERMISSIONS

    rows = ["| permission | allows |", "|---|---|"]
    return table(rows + [f"| `{name}` | {what} |" for name, what in PERMISSIONS.items()])


def errors() -> str:
    """Return every error code of problem documents as a table."""
    from uait_server_ext import errors as module

    found = {
        kind.code: kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, module.UaitError)
    }
    rows = ["| status | code | meaning |", "|---|---|---|"]
    for kind in sorted(found.values(), key=lambda k: (k.status, k.code)):
        rows.append(f"| {kind.status} | `{kind.code}` | {(kind.__doc__ or '').splitlines()[0]} |")
    return table(rows)


def traits() -> str:
    """Return every setting of the server extension as a table."""
    from uait_server_ext.app import UaitApp

    rows = ["| setting | kind | meaning |", "|---|---|---|"]
    for name, trait in sorted(UaitApp.class_own_traits(config=True).items()):
        text = " ".join(str(trait.help).split())
        rows.append(f"| `UaitApp.{name}` | {type(trait).__name__} | {text} |")
    return table(rows)


def command_help(*words: str) -> str:
    """Return the help text of a `uait` command."""
    from typer.testing import CliRunner

    from uait_server_ext.cli import app

    os.environ["COLUMNS"] = "88"
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="uait", terminal_width=88)
    text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
    return f"\n```text\n{text}\n```\n"


def magic_help(name: str) -> str:
    """Return the usage text of a magic."""
    from uait_kernel.magics import UaitMagics

    text = (getattr(UaitMagics, name).__doc__ or "").strip()
    return f"\n```text\n{text}\n```\n"


def models() -> str:
    """Return the model catalogue as a table."""
    from uait_server_ext.inference.catalogue import Catalogue

    rows = ["| model | kind | download | memory | context | licence |", "|---|---|---|---|---|---|"]
    for entry in Catalogue.load().entries:
        rows.append(
            f"| `{entry.id}` | {entry.kind} | {entry.size_bytes / 1e6:,.0f} MB "
            f"| {entry.memory_bytes / 1e6:,.0f} MB | {entry.context_tokens:,} | {entry.licence} |"
        )
    return table(rows)


def table(rows: list[str]) -> str:
    """Join rows, with the blank lines that Markdown needs around a table."""
    return "\n" + "\n".join(rows) + "\n"
