"""How a result shows itself, and why an answer that was streamed is not shown twice.

A magic that streams has already shown its result when it returns it, and IPython would show the
cell's value once more. So a result remembers the execution in which it was streamed: there its
next display stays empty (in a terminal: one summary line after `Out[n]:`). `_`, `Out[n]` and
`answer = %ask …` hold the object all the same, and any later cell shows it in full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uait_kernel.errors import one_line

NOT_SHOWN: tuple[int | None, bool] = (None, False)


@dataclass(frozen=True)
class Bundle:
    """What a front end shows of a result: data by MIME type, and the output's metadata."""

    html: str
    plain: str
    extra: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """Data by MIME type."""
        return {"text/html": self.html, "text/plain": self.plain, **self.extra}


class Shown:
    """Mixin of results: shows `bundle()`, but not again where it was just streamed."""

    def bundle(self) -> Bundle:
        """Return what a front end shows."""
        raise NotImplementedError

    def mark_shown(self, execution: int, *, terminal: bool = False) -> None:
        """Remember that this execution has shown the result already, or is not to show it."""
        object.__setattr__(self, "_shown", (execution, terminal))

    @property
    def is_above(self) -> bool:
        """Whether a terminal shows the result already, just above."""
        execution, terminal = getattr(self, "_shown", NOT_SHOWN)
        return terminal and execution == _execution()

    def _ipython_display_(self) -> None:
        """Stay silent for the value of the cell that showed it; else let the bundle be shown."""
        execution, terminal = getattr(self, "_shown", NOT_SHOWN)
        if terminal or execution is None or execution != _execution():
            raise NotImplementedError  # IPython goes on with `_repr_mimebundle_`
        object.__setattr__(self, "_shown", NOT_SHOWN)

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return data and metadata for IPython's display."""
        if self.is_above:
            return {"text/plain": one_line(repr(self))}, {}
        bundle = self.bundle()
        return bundle.data, bundle.metadata


def _execution() -> int | None:
    """Return the number of the running execution, None outside IPython."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return None if shell is None else shell.execution_count
