"""OpenAI's form of errors, `{"error": {message, type, param, code}}`, from problem documents."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from uait_server_ext.schema import Schema

OPENAI = "/uait/openai/v1"
"""The path under which the operations of OpenAI's wire format are."""

CODES = {
    "unauthenticated": "invalid_api_key",
    "model-not-found": "model_not_found",
    "context-too-long": "context_length_exceeded",
    "busy": "rate_limit_exceeded",
    "budget-exceeded": "insufficient_quota",
}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ErrorDetail(Schema):
    """What happened and what to do."""

    message: str
    type: str
    param: str | None = Field(None, description="The parameter at fault, where there is one.")
    code: str | None = None


class ErrorBody(Schema):
    """An error as OpenAI's clients read it."""

    error: ErrorDetail


def status_of(status: int) -> int:
    """Return the status that OpenAI's clients know for one of ours."""
    return 400 if status == 422 else status


def error_body(problem: dict[str, Any]) -> ErrorBody:
    """Return a problem document in OpenAI's form."""
    status = status_of(problem["status"])
    code = str(problem["code"])
    if status >= 500:
        kind = "server_error"
    elif code == "budget-exceeded":
        kind = "insufficient_quota"
    else:
        kind = TYPES.get(status, "invalid_request_error")
    errors = problem.get("errors") or [{}]
    return ErrorBody(
        error=ErrorDetail(
            message=problem["detail"],
            type=kind,
            param=errors[0].get("location"),
            code=CODES.get(code, code.replace("-", "_")),
        )
    )
