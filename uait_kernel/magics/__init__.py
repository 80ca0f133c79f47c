"""The magics `%ask`, `%%ask`, `%kb` and `%models`, and how they come and go.

They are synchronous: IPython does not await magics, and a kernel's interrupt stops them at once.
What they need is imported when they run, so loading the extension takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.magic import (
    Magics,
    line_cell_magic,
    line_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)

from .arguments import HelpWanted
from .ask import ask_parser, run_ask
from .completion import complete_magics
from .kb import kb_help, run_kb
from .models import models_parser, run_models
from .questions import keep_questions

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from uait_kernel.results.shown import Shown

NAMES = {"line": ("ask", "kb", "models"), "cell": ("ask",)}


@magics_class
class UaitMagics(Magics):
    """UAIT in a notebook: ask your documents, keep them, see the models."""

    shell: InteractiveShell

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def ask(
        self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None
    ) -> Any:
        line, silent = (line, False) if cell is not None else _without_semicolon(line)
        try:
            return run_ask(self.shell, line, cell, self._names(local_ns), silent=silent)
        except HelpWanted:
            print(ask_parser().format_help())
        return None

    @no_var_expand
    @needs_local_scope
    @line_magic
    def kb(self, line: str, local_ns: Mapping[str, Any] | None = None) -> Any:
        line, silent = _without_semicolon(line)
        try:
            result = run_kb(self.shell, line, self._names(local_ns), silent=silent)
            return self._silenced(result) if silent else result
        except HelpWanted as wanted:
            print(wanted)
        return None

    @no_var_expand
    @line_magic
    def models(self, line: str) -> Any:
        line, silent = _without_semicolon(line)
        try:
            result = run_models(line)
            return self._silenced(result) if silent else result
        except HelpWanted:
            print(models_parser().format_help())
        return None

    # `%ask?` shows these.
    ask.__doc__ = ask_parser().format_help()
    kb.__doc__ = kb_help()
    models.__doc__ = models_parser().format_help()

    def _silenced(self, result: Shown | None) -> Shown | None:
        """Return a result that the cell returns but does not show.

        IPython's own rule for `;` does not reach a line magic, and `output_can_be_silenced` would
        throw the result away, also in `hits = %kb search …;`.
        """
        if result is not None:
            result.mark_shown(self.shell.execution_count)
        return result

    def _names(self, local_ns: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the names an expression can use: the kernel's, and a function's own over them."""
        return {**self.shell.user_ns, **(local_ns or {})}


def _without_semicolon(line: str) -> tuple[str, bool]:
    """Return a line without the `;` at its end, and whether there was one."""
    stripped = line.rstrip()
    return (stripped[:-1].rstrip(), True) if stripped.endswith(";") else (stripped, False)


def load(shell: InteractiveShell) -> None:
    """Register the magics, their completion and the question marks; twice is once."""
    unload(shell)
    shell.register_magics(UaitMagics)
    shell.input_transformers_cleanup.append(keep_questions)
    if shell.Completer is not None:
        shell.Completer.custom_matchers.append(complete_magics)


def unload(shell: InteractiveShell) -> None:
    """Take everything of `load` away."""
    for kind, names in NAMES.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    if keep_questions in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(keep_questions)
    if shell.Completer is not None and complete_magics in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(complete_magics)
