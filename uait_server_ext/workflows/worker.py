"""The run worker: `python -m uait_server_ext.workflows.worker`, one process a run.

Reads a `RunJob` from standard input, executes it through papermill, writes events as JSON lines on
standard output. papermill and nbclient take over signal handlers and the working directory of
their process, which is why they have one to themselves.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel
from traitlets.config import Config

from .models import EXIT_CODES, CellOutput, CellStarted, RunFinished, RunJob

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class RunWorker:
    """Execute one job and report on a stream."""

    def __init__(self, job: RunJob, reports: TextIO) -> None:
        self.job = job
        self.reports = reports
        self.cells = 0

    def report(self, event: BaseModel) -> None:
        """Write one event as a line."""
        self.reports.write(event.model_dump_json() + "\n")
        self.reports.flush()

    def run(self) -> RunFinished:
        """Execute the notebook; the outcome says whether it really completed."""
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError

        if rejected := self.check():
            return rejected
        self.job.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            papermill.execute_notebook(
                self.job.notebook,
                self.job.output,
                parameters=self.job.parameters,
                kernel_name=self.job.kernel_name,
                cwd=self.job.working_dir,
                progress_bar=False,
                execution_timeout=self.job.cell_timeout,
                on_cell_start=self.cell_started,
                on_cell_executed=self.cell_executed,
                # Other users of this machine read a kernel's ports otherwise.
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            )
        except PapermillExecutionError as error:
            return RunFinished(
                state="failed",
                cell=error.cell_index,
                error=plain(f"{error.ename}: {error.evalue}" if error.evalue else error.ename),
            )
        except DeadKernelError:
            return RunFinished(
                state="kernel-died", error="The kernel died in the middle of a cell."
            )
        except Exception as error:  # the edge of the process: a state, never a silent end
            return RunFinished(state="failed", error=plain(f"{type(error).__name__}: {error}"))
        return RunFinished(state="completed")

    def check(self) -> RunFinished | None:
        """Reject a file that is no notebook and parameters that the notebook does not have."""
        import nbformat
        import papermill

        try:
            notebook = nbformat.read(self.job.notebook, as_version=4)
            known = list(papermill.inspect_notebook(self.job.notebook))
        except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
            return RunFinished(
                state="rejected",
                error=f"{self.job.notebook} is not a notebook: {plain(str(error))}",
            )
        self.cells = len(notebook.cells) + bool(self.job.parameters)  # papermill adds one
        for name in self.job.parameters:
            if name in known:
                continue
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            has = f"It has: {', '.join(known)}." if known else "It has no `parameters` cell."
            return RunFinished(
                state="rejected", error=f"The notebook has no parameter {name}. {has}{hint}"
            )
        return None

    def cell_started(self, cell: Any, cell_index: int) -> None:
        """Report that a cell begins (a hook of nbclient)."""
        self.report(CellStarted(index=cell_index, cells=self.cells))

    def cell_executed(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        """Report what a cell shows (a hook of nbclient)."""
        text = "\n".join(filter(None, (output_text(output) for output in cell.outputs)))
        if text:
            self.report(CellOutput(index=cell_index, text=text))


def output_text(output: Any) -> str:
    """Return an output as plain text; errors are reported by the run's end."""
    if output.output_type == "stream":
        return plain("".join(output.text)).rstrip()
    if output.output_type in ("display_data", "execute_result"):
        return plain("".join(output.data.get("text/plain", ""))).rstrip()
    return ""


def plain(text: str) -> str:
    """Drop terminal colours."""
    return ANSI.sub("", text)


# The lab template, less the scripts that it would fetch from other hosts.
HTML_TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def write_html(notebook: Path, target: Path) -> None:
    """Export the executed notebook as one HTML file that needs no other host."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"uait.html.j2": HTML_TEMPLATE})],
        template_file="uait.html.j2",
        embed_images=True,
    )
    body, _ = exporter.from_filename(str(notebook))
    target.write_text(body, encoding="utf-8")


def main() -> int:
    """Run the job on standard input; the exit code is the run's."""
    # 1.1 s of every `import nbformat`: a grammar that only format checks of JSON schemas need.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    job = RunJob.model_validate_json(sys.stdin.read())
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with redirect_stdout(sys.stderr):  # libraries that print must not break the protocol
        worker = RunWorker(job, reports)
        finished = worker.run()
        if job.html and job.output.exists():
            write_html(job.output, job.html)
    worker.report(finished)
    return EXIT_CODES[finished.state]


if __name__ == "__main__":
    sys.exit(main())
