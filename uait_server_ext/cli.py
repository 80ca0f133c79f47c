"""The `uait` command: start servers, run notebooks; the rest in `commands/`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .commands import audit, budgets, doctor, models, session, tuning, users, vault
from .errors import UaitError
from .paths import default_data_dir

app = typer.Typer(
    name="uait",
    help="Universal AI Tools for Jupyter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(session.app)
app.add_typer(models.app, name="models")
app.add_typer(tuning.app, name="tune")
app.add_typer(users.app, name="users")
app.add_typer(budgets.app, name="budgets")
app.add_typer(vault.app, name="vault")
app.add_typer(audit.app, name="audit")
app.add_typer(doctor.app, name="doctor")

REJECTED = 2
UNREACHABLE = 3
INTERRUPTED = 130


def main() -> None:
    """Run the command; an error of ours is one line on standard error."""
    try:
        app()
    except UaitError as error:
        fail(error.detail, UNREACHABLE if error.status >= 500 else REJECTED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def fail(message: str, code: int) -> None:
    """Print one line of error and exit."""
    print(f"uait: {message}", file=sys.stderr)
    sys.exit(code)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Universal AI Tools for Jupyter."""


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Start JupyterLab with UAIT and its login; every option of `jupyter lab` can follow.

    The first start prints a link with which you make your account. Unlike plain `jupyter lab`,
    where Jupyter's token is the login, it knows people, and governs every route of the server.
    """
    from .start import start_lab

    start_lab(context.args)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Start UAIT for many people: without JupyterLab, kernels, files and terminals.

    Options of `jupyter server` can follow.
    """
    from .start import start_service

    start_service(context.args)


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="The notebook to execute.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; may be repeated.")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="A new folder for this run is made in it.")
    ] = Path("runs"),
    html: Annotated[bool, typer.Option("--html", help="Also keep the result as HTML.")] = False,
    kernel: Annotated[str | None, typer.Option(help="Kernel, if not the notebook's.")] = None,
    cell_timeout: Annotated[float | None, typer.Option(help="Seconds for one cell.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server; its token: UAIT_TOKEN.")
    ] = None,
    own_server: Annotated[
        bool, typer.Option("--own-server", help="Start a server for this run even if one runs.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="State of the server that is started for this run.")
    ] = None,
) -> None:
    """Execute a notebook against a running server, or one started for the run.

    Exit code: 0 completed, 1 a cell failed, 2 rejected, 3 kernel or server gone, 130 interrupted.
    The executed notebook is kept in every case.
    """
    from .workflows.models import EXIT_CODES, RunJob
    from .workflows.run import execute, run_folder

    if not notebook.is_file():
        fail(f"{notebook} is not a file. Name a notebook (.ipynb).", REJECTED)
    parameters = parse_parameters(parameter or [])
    with ExitStack() as stack:
        folder = run_folder(output_dir, notebook, datetime.now())
        environment = choose_server(stack, url=url, own=own_server, data_dir=data_dir)
        environment["UAIT_RUN_DIR"] = str(folder.resolve())
        job = RunJob(
            notebook=notebook.resolve(),
            output=(folder / notebook.name).resolve(),
            working_dir=notebook.resolve().parent,
            parameters=parameters,
            kernel_name=kernel,
            cell_timeout=cell_timeout,
            html=(folder / f"{notebook.stem}.html").resolve() if html else None,
        )
        finished = execute(job, environment=environment, follow=show)
    for kept in (job.output, job.html):
        if kept and kept.exists():
            print(f"kept: {folder / kept.name}")
    print(f"run: {finished.state}")
    if finished.state != "completed":
        where = "" if finished.cell is None else f"cell {finished.cell}: "
        fail(f"{where}{finished.error}", EXIT_CODES[finished.state])


def parse_parameters(given: list[str]) -> dict[str, Any]:
    """Read `name=value` pairs; values are typed as YAML, as papermill does."""
    from papermill.cli import _resolve_type

    parameters: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            fail(f"-p {pair}: write it as name=value.", REJECTED)
        parameters[name] = _resolve_type(value)
    return parameters


def choose_server(
    stack: ExitStack, *, url: str | None, own: bool, data_dir: Path | None
) -> dict[str, str]:
    """Return the kernel's environment: which server to use; start one where none runs.

    The environment never holds a token: the kernel takes it from the server's private runtime
    file. `UAIT_TOKEN` that the person has set for a remote server is left as it is.
    """
    from uait_kernel.client import Client
    from uait_kernel.discovery import find_server
    from uait_kernel.errors import PermissionDenied, UaitClientError, Unauthenticated

    from .workflows.server import own_server

    if url:
        return {"UAIT_URL": url}
    if not own:
        try:
            found = find_server()
            Client.of(found).health()
        except (Unauthenticated, PermissionDenied):
            print(
                "no login at the running server (`uait login` makes one): starting another server "
                "for this run",
                file=sys.stderr,
            )
        except UaitClientError:
            print("no running server: starting one for this run", file=sys.stderr)
        else:
            return {"UAIT_URL": found.url}
    options = {"data_dir": str((data_dir or default_data_dir()).absolute())}
    server = stack.enter_context(own_server(Path.cwd(), options=options))
    return {"UAIT_URL": server.url}


def show(event: Any) -> None:
    """Print progress to standard error and what cells show to standard output."""
    if event.type == "cell":
        print(f"cell {event.index + 1}/{event.cells}", file=sys.stderr)
    else:
        print(event.text, flush=True)
