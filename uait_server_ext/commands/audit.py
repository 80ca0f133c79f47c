"""`uait audit`: verify and export the audit log, from the shell."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from .state import DatabaseUrl, DataDir, MasterKeyUrl, Place

app = typer.Typer(help="The audit log.", no_args_is_help=True)

BROKEN = 1


@app.callback()
def place(
    context: typer.Context,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = "",
    master_key: MasterKeyUrl = "file:",
) -> None:
    """The audit log."""
    context.obj = Place(data_dir, database_url, master_key)


@app.command()
def verify(context: typer.Context) -> None:
    """Check that no event was changed, removed or cut off; exit code 1 where one was."""
    with context.obj.opened() as foundation:
        report = asyncio.run(foundation.audit.verify())
    print(report.detail)
    print(f"head: {report.head}")
    if not report.intact:
        sys.exit(BROKEN)


@app.command()
def export(
    context: typer.Context,
    after: Annotated[int, typer.Option(help="Only events after this sequence.")] = 0,
) -> None:
    """Write the events to standard output as JSON lines, oldest first."""

    async def write() -> None:
        async for line in foundation.audit.export(after=after):
            sys.stdout.write(line)

    with context.obj.opened() as foundation:
        asyncio.run(write())
