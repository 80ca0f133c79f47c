"""`uait vault`: shared secrets, from the shell. Values come from a prompt or standard input."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uait_server_ext.errors import InvalidInput

from .state import DatabaseUrl, DataDir, MasterKeyUrl, Place, operator

if TYPE_CHECKING:
    from uait_server_ext.services import Foundation
    from uait_server_ext.vault.service import Vault

app = typer.Typer(help="Secrets: provider keys, database URLs.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The secret's name.")]


@app.callback()
def place(
    context: typer.Context,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = "",
    master_key: MasterKeyUrl = "file:",
) -> None:
    """Secrets: provider keys, database URLs."""
    context.obj = Place(data_dir, database_url, master_key)


@app.command("list")
def list_secrets(context: typer.Context) -> None:
    """List the shared secrets, without their values."""
    from rich.console import Console
    from rich.table import Table

    with context.obj.opened() as foundation:
        found = asyncio.run(vault_of(foundation).secrets(operator()))
    table = Table("name", "version", "changed", "kept", "description")
    for secret in found:
        changed = datetime.fromtimestamp(secret.updated_at, UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            secret.name,
            str(secret.version),
            changed,
            secret.reference or "here",
            secret.description,
        )
    Console().print(table)


@app.command("set")
def set_secret(
    context: typer.Context,
    name: Name,
    description: Annotated[str, typer.Option(help="Of a new secret.")] = "",
) -> None:
    """Create a secret, or give it a new value; the value is asked for or read from stdin."""
    with context.obj.opened() as foundation:
        print(f"{name}: {put(foundation, name, ask_value(name), description)}")


@app.command("get")
def get_secret(
    context: typer.Context,
    name: Name,
    version: Annotated[int | None, typer.Option(help="An older version.")] = None,
) -> None:
    """Print the value of a secret; the audit log records it first."""
    with context.obj.opened() as foundation:
        vault = vault_of(foundation)
        revealed = asyncio.run(vault.reveal(operator(), name, version=version))
    print(revealed.value)


@app.command("delete")
def delete_secret(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a secret with all its versions, for good."""
    if not yes:
        typer.confirm(f"Delete {name} with all its versions?", abort=True)
    with context.obj.opened() as foundation:
        asyncio.run(vault_of(foundation).delete(operator(), name))
    print(f"{name}: deleted")


@app.command("rotate")
def rotate_secret(context: typer.Context, name: Name) -> None:
    """Give an existing secret a new value; the old version stays until it is destroyed."""
    from pydantic import SecretStr

    from uait_server_ext.vault.models import SecretContent

    with context.obj.opened() as foundation:
        content = SecretContent(value=SecretStr(ask_value(name)))
        changed = asyncio.run(vault_of(foundation).set(operator(), name, content))
    print(f"{name}: version {changed.version}")


@app.command("rotate-master")
def rotate_master(context: typer.Context) -> None:
    """Put all secrets under a new master key; goes on where it was broken off.

    A running server goes on meanwhile. A backup from before needs its own, old key.
    """
    from uait_server_ext.events.audit import AuditEvent
    from uait_server_ext.storage.rotation import rotate

    with context.obj.opened() as foundation:
        done = rotate(
            foundation.database,
            foundation.sealer.keyring,
            progress=lambda count, total: print(f"\r{count}/{total}", end="", file=sys.stderr),
        )
        print(file=sys.stderr)
        event = AuditEvent(
            action="vault.rotate-master",
            outcome="ok",
            principal=operator().id,
            target=done.key_id,
            detail={"values": done.rewrapped, "resumed": done.resumed},
        )
        asyncio.run(foundation.audit.record(event))
    print(f"master key {done.key_id}: {done.rewrapped} values{' (resumed)' * done.resumed}")


@app.command("migrate")
def migrate_environment(
    context: typer.Context,
    env_file: Annotated[Path | None, typer.Option(help="A `.env` file. Default: ./.env")] = None,
    remove: Annotated[
        bool, typer.Option("--remove/--keep", help="Take the secrets out of the file.")
    ] = False,
) -> None:
    """Move secrets from the environment and a `.env` file into the vault; may be run again."""
    from uait_server_ext.vault.migrate import migrate

    default = Path(".env")
    file = env_file or (default if default.is_file() else None)
    with context.obj.opened() as foundation:
        vault = vault_of(foundation)
        done = asyncio.run(migrate(vault, operator(), env_file=file, remove=remove))
    for name, outcome in done.outcomes.items():
        print(f"{name}: {outcome}{', removed from the file' * (name in done.removed)}")
    if not done.outcomes:
        print("no secrets found")
    for path, line, name in done.in_profiles:
        print(f"still set: {name} in {path}, line {line}. Delete that line.")
    elsewhere = set(done.in_environment) - {name for _, _, name in done.in_profiles}
    for name in sorted(elsewhere):
        print(f"still set: {name} in this shell's environment. Delete it where it is set.")


@app.command("accept-restore")
def accept_restore(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """After a restore from a backup: take the restored state for the truth.

    Secrets and audit log are then no longer reported as put back to an older state.
    """
    from uait_server_ext.events.audit import AuditEvent

    if not yes:
        typer.confirm("Did you restore this database yourself?", abort=True)
    with context.obj.opened(check=False) as foundation:
        why = AuditEvent(action="vault.accept-restore", outcome="ok", principal=operator().id)
        asyncio.run(foundation.audit.accept(why))
    print("accepted: the audit log records it")


def vault_of(foundation: Foundation) -> Vault:
    """Return the vault on this state."""
    from uait_server_ext.vault.service import Vault

    return Vault(foundation.database, foundation.sealer, foundation.audit)


def put(foundation: Foundation, name: str, value: str, description: str) -> str:
    """Create or change a shared secret; return which."""
    from pydantic import SecretStr, ValidationError

    from uait_server_ext.vault.models import NewSecret

    try:
        new = NewSecret(name=name, value=SecretStr(value), description=description, shared=True)
    except ValidationError as error:
        # Only what is wrong: the report would show the input.
        reasons = "; ".join(e["msg"] for e in error.errors(include_input=False))
        raise InvalidInput(f"{reasons}.") from None
    return asyncio.run(vault_of(foundation).put(operator(), new))


def ask_value(name: str) -> str:
    """Ask for a value without echo, or read standard input; never an argument: others see those."""
    if sys.stdin.isatty():
        value: str = typer.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True)
    else:
        value = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not value:
        raise InvalidInput("The value is empty. Type it, or pipe it into the command.")
    return value
