"""`uait models`: what there is, fetch, import, remove, load and unload, measure.

Files are changed in the model cache directly; a server that runs sees it at once. Loading and
unloading is asked of the server.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uait_server_ext.paths import default_model_cache, private_folder

from .session import Url, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uait_server_ext.inference.cache import OnProgress
    from uait_server_ext.inference.library import Library
    from uait_server_ext.inference.models import PullProgress

app = typer.Typer(help="Models on this machine.", no_args_is_help=True)

LOAD_SECONDS = 600.0
Model = Annotated[str, typer.Argument(help="Model id; `uait models list` shows them.")]


@app.command("list")
def list_models() -> None:
    """List the models of the catalogue: what they need, what runs them here, which are here."""
    from rich.console import Console
    from rich.table import Column, Table

    from uait_server_ext.inference.choice import Chooser, missing, too_large

    known = library()
    chooser = Chooser(known.catalogue, known.cache, default="auto", backend="auto")
    table = Table(
        Column("model", no_wrap=True), "good for", "size", "memory", "runs on", "licence", "here"
    )
    for entry in known.catalogue.entries:
        backend = chooser.backend(entry)
        table.add_row(
            entry.id,
            " ".join(entry.capabilities),
            f"{entry.size_bytes / 1e6:,.0f} MB",
            f"{entry.memory_bytes / 1e6:,.0f} MB",
            "-" if missing(backend) or too_large(entry) else backend,
            entry.licence,
            "yes" if known.cache.has(entry) else "no",
        )
        for adapter in known.registry.adapters(entry.id):
            size = f"{adapter.size_bytes / 1e6:,.1f} MB"
            table.add_row(f"  {adapter.id}", "adapter", size, "", "mlx", "", "yes")
    Console().print(table)


@app.command("pull")
def pull_models(
    model: Annotated[
        list[str] | None, typer.Argument(help="Model ids; none: the two embedded models.")
    ] = None,
) -> None:
    """Fetch models, verify them by their digests, keep them in the model cache.

    A pull of a hub model that was broken off goes on where it was.
    """
    known = library()
    catalogue = known.catalogue
    entries = [catalogue.get(name) for name in model] if model else catalogue.embedded()
    for entry in entries:
        was_here = known.cache.has(entry)
        with shown(entry.id) as progress:
            known.cache.pull(entry, progress)
        done = "already here" if was_here else f"pulled, {entry.size_bytes / 1e6:,.0f} MB"
        print(f"{entry.id}: {done}")


@app.command("import")
def import_model(
    path: Annotated[
        Path, typer.Argument(help="A model folder (MLX or Hugging Face, safetensors), or a GGUF.")
    ],
    id: Annotated[str | None, typer.Option(help="Its id; none: made of the path's name.")] = None,
    licence: Annotated[str | None, typer.Option(help="If its files do not say.")] = None,
    description: Annotated[str | None, typer.Option(help="One line for people.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of its context, if fewer.")] = None,
) -> None:
    """Copy a model into the catalogue; it is checked first, and nothing in it is run."""
    from uait_server_ext.inference.library import Wanted, model_id_of

    wanted = Wanted(path, id, licence, description, context)
    with shown(id or model_id_of(path.expanduser().resolve())) as progress:
        entry = library().import_model(wanted, progress)
    print(
        f"{entry.id}: imported, {entry.size_bytes / 1e6:,.0f} MB; "
        f"good for {' '.join(entry.capabilities)}; licence {entry.licence}"
    )


@app.command("remove")
def remove_model(
    model: Annotated[str, typer.Argument(help="Model id, or `base+name` of an adapter.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the files of a model or adapter; refused while something has it loaded."""
    known = library()
    entry = known.catalogue.get(model.partition("+")[0])
    again = entry.imported is None and "+" not in model
    if not again and not yes:
        typer.confirm(f"Remove {model}? It cannot be fetched again.", abort=True)
    freed = known.remove(model)
    print(f"{model}: removed, {freed / 1e6:,.0f} MB freed")


@app.command("load")
def load_model(model: Model, url: Url = None) -> None:
    """Let the running server load a model now."""
    ask_server(model, "load", url)
    print(f"{model}: loaded")


@app.command("unload")
def unload_model(model: Model, url: Url = None) -> None:
    """Let the running server give a model's memory back."""
    ask_server(model, "unload", url)
    print(f"{model}: unloaded")


@app.command("bench")
def bench_model(
    model: Annotated[str, typer.Argument(help="Model id; `id@backend` forces a backend.")],
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompts, about.", min=1)] = 512,
    max_tokens: Annotated[int, typer.Option(help="Tokens to make for each.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="The median of so many is shown.", min=1)] = 3,
) -> None:
    """Measure a model on this machine: speed of reading and writing, first token, memory."""
    from rich.console import Console
    from rich.table import Table

    from uait_server_ext.inference.bench import measure, worker_peak_bytes
    from uait_server_ext.inference.service import Inference

    known = library()
    entry = known.catalogue.get(model.partition("@")[0].partition("+")[0])

    async def run() -> dict[str, str]:
        inference = Inference(
            cache=known.cache, catalogue=known.catalogue, log=logging.getLogger("uait")
        )
        try:
            return await measure(
                inference,
                entry,
                model,
                prompt_tokens=min(prompt_tokens, entry.context_tokens - max_tokens),
                max_tokens=max_tokens,
                rounds=rounds,
            )
        finally:
            await inference.stop()

    figures = asyncio.run(run())
    figures["memory"] = f"{worker_peak_bytes() / 1e6:,.0f} MB"
    table = Table("", model)
    for name, figure in figures.items():
        table.add_row(name, figure)
    Console().print(table)


def library() -> Library:
    """Return the models of this machine."""
    from uait_server_ext.inference.library import Library

    return Library.open(private_folder(default_model_cache()))


def ask_server(model: str, verb: str, url: str | None) -> None:
    """Ask the server that runs to load or unload a model; exit with a line where that fails."""
    import os

    from uait_kernel.discovery import find_server, server_at
    from uait_kernel.errors import UaitClientError
    from uait_kernel.transport import Transport

    try:
        named = url or os.environ.get("UAIT_URL")
        token = os.environ.get("UAIT_TOKEN")
        server = server_at(named, token, "named") if named else find_server()
        Transport(server, timeout=LOAD_SECONDS).call("POST", "models", model, verb)
    except UaitClientError as error:
        fail(error)


@contextmanager
def shown(model: str) -> Iterator[OnProgress]:
    """Give what shows progress: a bar in a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda heard: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(model, total=None)

        def show(heard: PullProgress) -> None:
            progress.update(
                task,
                description=f"{model} {heard.stage}",
                completed=heard.done_bytes,
                total=heard.total_bytes or None,
            )

        yield show
