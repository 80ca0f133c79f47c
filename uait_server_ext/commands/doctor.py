"""`uait doctor`: the security audit report of this server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .state import DatabaseUrl, DataDir, MasterKeyUrl, Place

if TYPE_CHECKING:
    from uait_server_ext.doctor.report import Control, SecurityReport

FAILED = 1
WORDS = {"pass": "pass", "fail": "FAIL", "accepted": "accepted", "not applicable": "n/a"}

app = typer.Typer(help="Examine this server.", invoke_without_command=True)


@app.callback()
def doctor(
    security: Annotated[
        bool, typer.Option("--security", help="Check every security control, just now.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="A control whose failure is borne here; may be repeated."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="The server to ask, if several run.", metavar="URL")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = "",
    master_key: MasterKeyUrl = "file:",
) -> None:
    """Check what protects this server: its files, its database, and what it answers.

    Starts a kernel and ends it; asks the running server as a stranger and as somebody without
    permissions. Exit code 1 where a control fails. Run it as the user that runs the server.
    """
    if not security:
        print("uait doctor: say what to examine: --security", file=sys.stderr)
        raise typer.Exit(2)
    place = Place(data_dir, database_url, master_key)
    report = asyncio.run(examined(place, url, accept or []))
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        show(report)
    if report.failed:
        raise typer.Exit(FAILED)


async def examined(place: Place, url: str | None, accept: list[str]) -> SecurityReport:
    """Open the state, find the server, check every control."""
    from jupyter_core.paths import jupyter_runtime_dir

    from uait_server_ext.doctor import live
    from uait_server_ext.doctor.report import Subject, examine
    from uait_server_ext.errors import InvalidInput
    from uait_server_ext.identity.service import IdentitySettings
    from uait_server_ext.paths import default_data_dir
    from uait_server_ext.services import open_identity

    servers = list(live.running_servers(Path(jupyter_runtime_dir())))
    server = next((one for one in servers if url in (None, one.url, one.url.rstrip("/"))), None)
    if url and server is None:
        raise InvalidInput(f"No server of yours runs at {url}. Leave --url out to take the last.")
    with place.opened() as foundation:
        identity = open_identity(IdentitySettings(), foundation)
        subject = Subject(
            (place.data_dir or default_data_dir()).expanduser().absolute(),
            foundation,
            identity,
            server,
        )
        try:
            return await examine(subject, controls(), accept)
        except ValueError as error:
            raise InvalidInput(f"--accept: {error}.") from None


def controls() -> list[Control]:
    """Return every control, in the order of the report."""
    from uait_server_ext.doctor import kernels, live, local, people

    return [*local.CONTROLS, *people.CONTROLS, *live.CONTROLS, *kernels.CONTROLS]


def show(report: SecurityReport) -> None:
    """Print the report as a table and a sum."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "control", "found", "how")
    for finding in report.findings:
        table.add_row(WORDS[finding.outcome], finding.control, finding.found, finding.how)
    console = Console()
    console.print(f"server: {report.server or 'none runs'}")
    console.print(table)
    console.print(f"{len(report.failed)} of {len(report.findings)} controls fail")
