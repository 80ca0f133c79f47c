"""Show a running operation until it ends, is stopped or breaks off."""

from __future__ import annotations

from collections.abc import Callable

from uait_kernel.display.live import Live
from uait_kernel.errors import UaitClientError, show_as_one_line
from uait_kernel.event_stream import EventStream
from uait_kernel.results.answer import Answer, AnswerInProgress
from uait_kernel.results.knowledge import IngestSummary


def show_answer(
    events: EventStream,
    progress: AnswerInProgress,
    live: Live,
    keep: Callable[[Answer], None],
) -> Answer:
    """Show an answer as it streams and return it whole.

    Args:
        keep: called with the answer, also with the part of one that the user stopped.

    Raises:
        KeyboardInterrupt: the user stopped it; the part is shown, marked and kept.
        UaitClientError: it broke off; what there was is shown and marked, nothing is kept.
    """
    try:
        with events:
            for event in events:
                progress.add(event)
                live.draw(progress.answer)
    except KeyboardInterrupt as interrupt:
        part = progress.answer("stopped")
        live.finish(part)
        keep(part)
        show_as_one_line(interrupt, "the answer was stopped.")
        raise
    except UaitClientError as error:
        if not progress.is_empty:
            live.finish(progress.answer("failed", str(error)))
        raise
    answer = progress.answer()
    live.finish(answer)
    keep(answer)
    return answer


def show_ingest(events: EventStream, collection: str, live: Live) -> IngestSummary:
    """Show an ingest file by file and return its summary.

    Raises:
        KeyboardInterrupt, UaitClientError: it goes no further; what was done is shown.
    """
    summary = IngestSummary(collection)

    def current() -> IngestSummary:
        return summary

    try:
        with events:
            for event in events:
                summary = summary.after(event)
                live.draw(current)
    except KeyboardInterrupt as interrupt:
        live.finish(summary.ended("stopped"))
        show_as_one_line(interrupt, "adding was stopped.")
        raise
    except UaitClientError:
        if summary.reported:
            live.finish(summary.ended("failed"))
        raise
    live.finish(summary)
    return summary
