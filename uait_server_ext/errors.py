"""Every error that UAIT raises on purpose, drawn as one tree.

::

    UaitError                     500 internal
    ├─ InvalidInput               422 invalid-input
    │  ├─ ContextTooLong          422 context-too-long
    │  └─ UnsupportedDocument     422 unsupported-document
    ├─ Unauthenticated            401 unauthenticated
    ├─ PermissionDenied           403 permission-denied
    ├─ NotFound                   404 not-found
    │  ├─ CollectionNotFound      404 collection-not-found
    │  └─ ModelNotFound           404 model-not-found
    ├─ MethodNotAllowed           405 method-not-allowed
    ├─ Conflict                   409 conflict
    ├─ TooLarge                   413 too-large
    ├─ Busy                       429 busy
    └─ Unavailable                503 unavailable
       ├─ ModelUnavailable        503 model-unavailable
       │  └─ WorkerDied           503 worker-died
       ├─ DependencyMissing       503 dependency-missing
       └─ DeadlineExceeded        504 deadline-exceeded

The domains raise them; only the API edge maps them to problem details (RFC 9457). The message says
what happened and what to do; it is shown to people, so it holds no secret and no stack.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, ClassVar


class UaitError(Exception):
    """Something failed that is not the caller's fault.

    Keyword arguments become extension members of the problem document (RFC 9457 section 3.2).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extensions = extensions

    def problem(self) -> dict[str, Any]:
        """Return the problem document of RFC 9457 for this error."""
        return problem(self.status, self.code, self.detail, **self.extensions)


class InvalidInput(UaitError):
    """The request is understood but its content is not acceptable."""

    status = 422
    code = "invalid-input"


class ContextTooLong(InvalidInput):
    """The prompt has more tokens than the model's context holds."""

    code = "context-too-long"


class UnsupportedDocument(InvalidInput):
    """A file cannot be read as any kind of document that UAIT knows."""

    code = "unsupported-document"


class Unauthenticated(UaitError):
    """The caller did not prove who they are."""

    status = 401
    code = "unauthenticated"


class PermissionDenied(UaitError):
    """The caller is known and may not do this."""

    status = 403
    code = "permission-denied"


class NotFound(UaitError):
    """Nothing is there under that name."""

    status = 404
    code = "not-found"


class CollectionNotFound(NotFound):
    """No collection has that name."""

    code = "collection-not-found"


class ModelNotFound(NotFound):
    """No model in the catalogue has that id."""

    code = "model-not-found"


class MethodNotAllowed(UaitError):
    """The path exists, the method does not."""

    status = 405
    code = "method-not-allowed"


class Conflict(UaitError):
    """The request cannot be carried out in the present state."""

    status = 409
    code = "conflict"


class TooLarge(UaitError):
    """The request or a file in it is larger than the limit."""

    status = 413
    code = "too-large"


class Busy(UaitError):
    """A queue is full; the caller may try again later."""

    status = 429
    code = "busy"


class Unavailable(UaitError):
    """A part that the request needs is not running."""

    status = 503
    code = "unavailable"


class ModelUnavailable(Unavailable):
    """A model is known but cannot be used now (not pulled, no memory, failed to load)."""

    code = "model-unavailable"


class WorkerDied(ModelUnavailable):
    """The model worker process ended in the middle of a request; the next request starts one."""

    code = "worker-died"


class DependencyMissing(Unavailable):
    """An optional package is not installed; the message names the extra to install."""

    code = "dependency-missing"


class DeadlineExceeded(Unavailable):
    """The request took longer than it was given."""

    status = 504
    code = "deadline-exceeded"


def problem(status: int, code: str, detail: str, **extensions: Any) -> dict[str, Any]:
    """Build a problem document (RFC 9457); ``code`` is our stable name for the kind of error."""
    return {
        "type": f"urn:uait:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **extensions,
    }
