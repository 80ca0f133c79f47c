"""Runs the operations of OpenAI's wire format: its errors, its streams, its statuses."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel

from uait_server_ext.api.handler import OperationHandler
from uait_server_ext.api.operation import Operation

from .errors import error_body, status_of
from .wire import Whole

MAX_BODY_BYTES = 8 << 20  # images come within requests
DONE = "data: [DONE]\n\n"


class OpenAIHandler(OperationHandler):
    """Run an operation as OpenAI's clients expect it.

    An operation that can stream yields its events and, last, the whole answer: that alone is sent
    where the body does not ask for a stream, and not sent where it does.
    """

    max_body_bytes: ClassVar[int] = MAX_BODY_BYTES
    closing = DONE

    def wants_stream(self, arguments: dict[str, Any]) -> bool:
        """Tell whether the body asks for a stream."""
        return bool(getattr(arguments.get("body"), "stream", False))

    def frame(self, event: BaseModel) -> str:
        """Return an event as data; one with a type of its own under that name."""
        if isinstance(event, Whole):
            return ""
        kind = getattr(event, "type", None)
        name = f"event: {kind}\n" if kind else ""
        if kind:
            self.closing = ""  # such a stream ends with an event of its own
        return f"{name}data: {event.model_dump_json()}\n\n"

    def error_frame(self, problem: dict[str, Any]) -> str:
        """Return an error as the last event of a stream that had begun."""
        self.closing = ""
        return f"data: {error_body(problem).model_dump_json()}\n\n"

    def dump(self, operation: Operation, result: Any) -> bytes:
        """Return the bytes of an answer."""
        content: bytes = result.model_dump_json().encode()
        return content

    def finish_problem(self, document: dict[str, Any]) -> None:
        """Send an error in OpenAI's form."""
        self.set_status(status_of(self.get_status()))
        if document["code"] == "budget-exceeded":
            self.set_header("X-Should-Retry", "false")  # the clients would, at any 429
        self.finish(error_body(document).model_dump_json(), set_content_type="application/json")
