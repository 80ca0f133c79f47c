"""What can go wrong between a notebook and its UAIT server, drawn as one tree.

::

    UaitClientError
    ├─ UsageMistake           a magic's arguments, a `{{expression}}` or an address cannot be used
    ├─ ServerNotFound         no UAIT server is known and none was found
    ├─ NoAnswer               refused, timed out, gone
    │  └─ StreamBroken        the connection ended in the middle of an answer
    ├─ UnexpectedAnswer       something answers there that does not speak UAIT's protocol
    └─ ServerError            the server says no, in its own words (status, code, problem)
       ├─ Unauthenticated 401  ├─ PermissionDenied 403  ├─ NotFound 404   ├─ Conflict 409
       └─ TooLarge 413         └─ InvalidInput 422      └─ Busy 429       └─ Unavailable 503, 504

All are raised, never only printed, so that papermill and nbclient stop with them. In a notebook
each shows as one line, not as a stack: `_render_traceback_` is IPython's hook for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST_MESSAGE = 2_000


def one_line(text: str) -> str:
    """Return text on one line, without control characters, cut at a length people read."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def show_as_one_line(error: BaseException, message: str) -> None:
    """Let IPython show an exception that is not ours as one line instead of its stack."""
    line = f"{type(error).__name__}: {one_line(message)}"
    error._render_traceback_ = lambda: [line]  # type: ignore[attr-defined]


class UaitClientError(Exception):
    """A request to UAIT failed; the message is one line: what happened and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows for this error."""
        return [f"{type(self).__name__}: {self}"]


class UsageMistake(UaitClientError):
    """What was asked for cannot be understood; nothing was sent."""


class ServerNotFound(UaitClientError):
    """No UAIT server is known and none was found."""


class NoAnswer(UaitClientError):
    """The server cannot be reached, did not answer in time, or went away."""


class StreamBroken(NoAnswer):
    """The connection ended in the middle of an answer."""


class UnexpectedAnswer(UaitClientError):
    """Something answered that does not speak UAIT's protocol."""


class ServerError(UaitClientError):
    """The server refused or failed, and said why.

    Attributes:
        status: HTTP status.
        code: UAIT's stable name for the kind of error, such as `model-not-found`.
        problem: the whole problem document (RFC 9457).
    """

    def __init__(self, message: str, problem: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = int(problem.get("status") or 500)
        self.code = str(problem.get("code") or "internal")
        self.problem = dict(problem)


class Unauthenticated(ServerError):
    """The server does not know the token."""


class PermissionDenied(ServerError):
    """The token is known and may not do this."""


class NotFound(ServerError):
    """No collection, model or operation has that name."""


class Conflict(ServerError):
    """The request cannot be carried out in the present state."""


class TooLarge(ServerError):
    """The request is larger than the server takes."""


class InvalidInput(ServerError):
    """The server understood the request and cannot accept its content."""


class Busy(ServerError):
    """A queue is full; try again later."""


class Unavailable(ServerError):
    """A part of the server that the request needs is not running."""


BY_STATUS: dict[int, type[ServerError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    429: Busy,
    503: Unavailable,
    504: Unavailable,
}


def from_problem(problem: Mapping[str, Any], *, hint: str = "") -> ServerError:
    """Return the error that a problem document describes; `hint` is added to its words."""
    status = problem.get("status")
    kind = BY_STATUS.get(status, ServerError) if isinstance(status, int) else ServerError
    detail = problem.get("detail") or problem.get("title") or "The server gave no reason."
    return kind(f"{detail} {hint}".strip(), problem)
