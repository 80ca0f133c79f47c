"""Tables and help texts of the documentation, made from the code (`make docs`)."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

sys.path.insert(0, str(Path(__file__).parent.parent))

REDIRECTS = ("Send the browser", "Take the browser")
RATE_CLASSES = {
    "read": "looking",
    "write": "changing",
    "inference": "models",
    "ingest": "adding documents",
    "probe": "health",
    "login": "logins and other proofs of who one is",
}


def operations() -> str:
    """Return every HTTP operation as a table."""
    from uait_server_ext.api.v1 import operations as declared

    rows = ["| operation | permission | answer | what it does |", "|---|---|---|---|"]
    for op in declared():
        if op.streams:
            answer = "events"
        elif op.content_type != "application/json":
            answer = f"`{op.content_type}`"
        elif op.response is not type(None):
            answer = "JSON"
        else:
            # Those that lead a browser on say so in their first word.
            answer = "302" if op.summary.startswith(REDIRECTS) else "204"
        route = f"{op.method} /uait/v1{op.path}"
        permission = f"`{op.permission}`{', fresh proof' * op.sensitive}"
        rows.append(f"| `{route}` | {permission} | {answer} | {op.summary} |")
    return table(rows)


def roles() -> str:
    """Return which role holds which permission, as a table."""
    from uait_server_ext.identity.principal import PERMISSIONS, ROLES

    rows = [
        f"| permission | {' | '.join(ROLES)} | allows |",
        f"|---|{':-:|' * len(ROLES)}---|",
    ]
    for name, what in PERMISSIONS.items():
        marks = " | ".join("✓" if name in held else "" for held in ROLES.values())
        rows.append(f"| `{name}` | {marks} | {what} |")
    return table(rows)


def rates() -> str:
    """Return the rate limits of each class of operations as a table."""
    from uait_server_ext.resilience.limits import RATES

    rows = ["| class | for | a person | an API key | an address |", "|---|---|--:|--:|--:|"]
    for name, rate in RATES.items():
        counts = f"{rate.user:,} | {rate.key:,} | {rate.ip:,}"
        rows.append(f"| `{name}` | {RATE_CLASSES[name]} | {counts} |")
    return table(rows)


def kernel_environment() -> str:
    """Return the names of the variables that kernels see of the server's environment."""
    from uait_server_ext.identity.kernel_environment import LISTED, LISTED_BEGINNINGS

    return words(*LISTED.split(), *(f"{beginning}*" for beginning in LISTED_BEGINNINGS.split()))


def secret_words() -> str:
    """Return the words in a variable's name that keep it from kernels."""
    from uait_server_ext.identity.kernel_environment import OWN_PREFIX, SECRET_ENDS, SECRETS

    return words(*SECRETS.split(), *(f"*{end}" for end in SECRET_ENDS), f"{OWN_PREFIX}*")


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


def commands(*words: str) -> str:
    """Return the sub-commands of a `uait` command as a table, and their options as another."""
    group = subcommand(*words)
    rows = ["| command | what it does |", "|---|---|"]
    options = ["| option | of | meaning |", "|---|---|---|"]
    shared = [f"| {option_row(one, 'all, before the sub-command')} |" for one in options_of(group)]
    for name, command in group.commands.items():
        usage = " ".join([*words, name, *(p.name.upper() for p in arguments_of(command))])
        rows.append(f"| `uait {usage}` | {sentence(command.help)} |")
        options += [f"| {option_row(one, f'`{name}`')} |" for one in options_of(command)]
    return table(rows) + table(options + shared)


def subcommand(*words: str) -> Any:
    """Return a `uait` command."""
    from typer.main import get_command

    from uait_server_ext.cli import app

    found: Any = get_command(app)
    for word in words:
        found = found.commands[word]
    return found


def arguments_of(command: click.Command) -> list[click.Parameter]:
    """Return what stands after a command without a name of its own."""
    return [p for p in command.params if p.param_type_name == "argument"]


def options_of(command: click.Command) -> Iterator[Any]:
    """Return the options of a command, but for `--help`."""
    return (p for p in command.params if p.param_type_name == "option" and p.name != "help")


def option_row(option: Any, where: str) -> str:
    """Return the cells that describe an option."""
    written = ", ".join(f"`{one}`" for one in [*option.opts, *option.secondary_opts])
    variable = f" Variable: `{option.envvar}`." if option.envvar else ""
    return f"{written} | {where} | {option.help}{variable}"


def sentence(text: str | None) -> str:
    """Return the first paragraph of a help text in one line."""
    return " ".join(re.split(r"\n\s*\n", text or "", maxsplit=1)[0].split())


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


def security_cases() -> str:
    """Return the numbered security cases with the tests that prove them."""
    from tests.security.cases import table as cases

    return cases()


def security_controls() -> str:
    """Return the controls of `uait doctor --security` as a table."""
    from uait_server_ext.commands.doctor import controls

    rows = ["| control | what holds | how it is checked |", "|---|---|---|"]
    for control in controls():
        promise = (control.check.__doc__ or "").splitlines()[0]
        rows.append(f"| `{control.name}` | {promise} | {control.how} |")
    return table(rows)


def words(*found: str) -> str:
    """Return words as a block of text."""
    return f"\n```text\n{textwrap.fill(' '.join(found), 98)}\n```\n"


def table(rows: list[str]) -> str:
    """Join rows, with the blank lines that Markdown needs around a table."""
    return "\n" + "\n".join(rows) + "\n"
