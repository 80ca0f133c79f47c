"""A run as data: what the parent asks of the run worker, and what the worker reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from uait_server_ext.schema import Schema


class RunJob(Schema):
    """One notebook to execute."""

    notebook: Path
    output: Path
    working_dir: Path
    parameters: dict[str, Any] = Field(default_factory=dict)
    kernel_name: str | None = None
    cell_timeout: float | None = Field(None, description="Seconds for one cell; none: no limit.")
    html: Path | None = Field(None, description="Where to write the executed notebook as HTML.")


class CellStarted(Schema):
    """A cell begins."""

    type: Literal["cell"] = "cell"
    index: int
    cells: int


class CellOutput(Schema):
    """What a finished cell shows, as plain text."""

    type: Literal["output"] = "output"
    index: int
    text: str


class RunFinished(Schema):
    """The end of a run. The executed notebook is kept in every case."""

    type: Literal["finished"] = "finished"
    state: Literal["completed", "failed", "rejected", "kernel-died"]
    cell: int | None = None
    error: str | None = None


RunEvent = Annotated[CellStarted | CellOutput | RunFinished, Field(discriminator="type")]
RUN_EVENT: TypeAdapter[CellStarted | CellOutput | RunFinished] = TypeAdapter(RunEvent)
EXIT_CODES = {"completed": 0, "failed": 1, "rejected": 2, "kernel-died": 3}
