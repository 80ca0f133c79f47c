"""One output that grows while an answer streams: in a notebook, without a person, in a terminal.

| where | how |
| --- | --- |
| a kernel with a person before it | one display, updated about 10 times a second |
| a kernel without (papermill, nbclient, nbval: no input allowed) | the final state, once |
| IPython in a terminal | text printed as it comes |
| neither a kernel nor a terminal | the final state, printed once |
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Protocol

from uait_kernel.results.shown import Bundle, Shown

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import DisplayHandle

FRAME_SECONDS = 0.1
# Drawing takes this part of the time at most, however long the text grows, but never waits longer
# than this.
DRAWING_SHARE = 0.1
LONGEST_FRAME_SECONDS = 1.0


class Live(Protocol):
    """An output that is drawn again and again, and then for the last time."""

    def draw(self, current: Callable[[], Shown]) -> None:
        """Show how things stand, if it is time to; `current` is only called then."""
        ...

    def finish(self, result: Shown) -> None:
        """Show the result."""
        ...


class Frames:
    """Decides when to draw: about 10 times a second, less often where drawing is slow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock()

    def draw(self, action: Callable[[], None]) -> None:
        """Run the action if it is time to."""
        began = self._clock()
        if began < self._next:
            return
        action()
        ended = self._clock()
        wanted = max(FRAME_SECONDS, (ended - began) / DRAWING_SHARE)
        self._next = ended + min(wanted, LONGEST_FRAME_SECONDS)


class NotebookLive:
    """One display of a kernel, updated in place; the saved notebook keeps its last state."""

    def __init__(self, execution: int, clock: Callable[[], float] = time.monotonic) -> None:
        # The server is at work by now: import what drawing needs while it is.
        from .markdown import render_markdown

        render_markdown("")
        self._execution = execution
        self._frames = Frames(clock)
        self._handle: DisplayHandle | None = None

    def draw(self, current: Callable[[], Shown]) -> None:
        self._frames.draw(lambda: self._publish(current().bundle()))

    def finish(self, result: Shown) -> None:
        self._publish(result.bundle())
        result.mark_shown(self._execution)

    def _publish(self, bundle: Bundle) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle.data, raw=True, metadata=bundle.metadata, display_id=True)
        else:
            self._handle.update(bundle.data, raw=True, metadata=bundle.metadata)


class FinalOnly:
    """One display of a kernel that nobody watches."""

    def __init__(self, execution: int) -> None:
        self._execution = execution

    def draw(self, current: Callable[[], Shown]) -> None:
        pass

    def finish(self, result: Shown) -> None:
        from IPython.display import display

        bundle = result.bundle()
        display(bundle.data, raw=True, metadata=bundle.metadata)
        result.mark_shown(self._execution)


class TerminalLive:
    """Text on a stream: what was added is printed; a line that changes is written over."""

    def __init__(
        self, execution: int, stream: IO[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._execution = execution
        self._stream = stream
        self._frames = Frames(clock)
        self._shown = ""

    def draw(self, current: Callable[[], Shown]) -> None:
        if self._stream.isatty():
            self._frames.draw(lambda: self._write(current().bundle().plain, last=False))

    def finish(self, result: Shown) -> None:
        self._write(result.bundle().plain, last=True)
        self._stream.write("\n")
        self._stream.flush()
        result.mark_shown(self._execution, terminal=True)

    def _write(self, text: str, *, last: bool) -> None:
        """Bring the terminal from what it shows to this text."""
        if text.startswith(self._shown):
            self._stream.write(text[len(self._shown) :])
        elif text.startswith(kept := self._shown.rstrip()):
            self._stream.write(text[len(kept) :])
        elif "\n" in self._shown:
            self._stream.write(f"\n\n{text}")
        else:
            if not last:  # a longer line would wrap and could not be written over
                text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
        self._shown = text


class Silent:
    """No output at all: `%ask …;` only returns its answer."""

    def __init__(self, execution: int) -> None:
        self._execution = execution

    def draw(self, current: Callable[[], Shown]) -> None:
        pass

    def finish(self, result: Shown) -> None:
        result.mark_shown(self._execution)


def live_output(shell: InteractiveShell, *, silent: bool = False) -> Live:
    """Return the output that fits where this shell runs."""
    if silent:
        return Silent(shell.execution_count)
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return TerminalLive(shell.execution_count, sys.stdout)
    if somebody_watches(kernel):
        return NotebookLive(shell.execution_count)
    return FinalOnly(shell.execution_count)


def somebody_watches(kernel: Any) -> bool:
    """Tell whether a person can answer the kernel's questions; papermill and its like cannot."""
    content = kernel.get_parent("shell").get("content", {})
    return bool(content.get("allow_stdin", True))
