"""Every error that UAIT raises on purpose, drawn as one tree.

::

    UaitError                     500 internal
    ├─ FlowInvalid                400 flow-invalid
    ├─ InvalidInput               422 invalid-input
    │  ├─ ContextTooLong          422 context-too-long
    │  ├─ UnsupportedDocument     422 unsupported-document
    │  ├─ AddressRefused          422 address-refused
    │  ├─ WeakPassword            400 weak-password
    │  └─ LinkUnusable            400 link-unusable
    ├─ GrantRefused               400 invalid_grant (the names of RFC 6749 and RFC 8628)
    │  ├─ AuthorizationPending    400 authorization_pending
    │  ├─ SlowDown                400 slow_down
    │  ├─ CodeExpired             400 expired_token
    │  └─ AccessDenied            400 access_denied
    ├─ LoginFailed                400 login-failed
    ├─ Unauthenticated            401 unauthenticated
    │  └─ SignatureRefused        401 signature-refused
    ├─ PermissionDenied           403 permission-denied
    │  └─ ReauthenticationNeeded  403 reauthenticate
    ├─ NotFound                   404 not-found
    │  ├─ CollectionNotFound      404 collection-not-found
    │  └─ ModelNotFound           404 model-not-found
    ├─ MethodNotAllowed           405 method-not-allowed
    ├─ Conflict                   409 conflict
    ├─ TooLarge                   413 too-large
    ├─ UnsupportedMediaType       415 unsupported-media-type
    ├─ BudgetExceeded             429 budget-exceeded
    ├─ Busy                       429 busy
    │  └─ TooManyAttempts         429 too-many-attempts
    ├─ SealBroken                 500 seal-broken
    └─ Unavailable                503 unavailable
       ├─ ModelUnavailable        503 model-unavailable
       │  ├─ WorkerDied           503 worker-died
       │  ├─ UpstreamFailed       503 upstream-failed
       │  │  └─ UpstreamRefused   503 upstream-refused
       │  └─ StreamCut            503 stream-cut
       ├─ ProviderUnavailable     503 provider-unavailable
       ├─ CircuitOpen             503 circuit-open
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


class FlowInvalid(UaitError):
    """The second half of a login fits no first half that waits: unknown, used or another's."""

    status = 400
    code = "flow-invalid"


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


class GrantRefused(UaitError):
    """A token cannot be given for this code; `error` is the name that OAuth clients look for."""

    status = 400
    code = "invalid_grant"

    def __init__(self, detail: str, **extensions: Any) -> None:
        super().__init__(detail, error=self.code, **extensions)


class AuthorizationPending(GrantRefused):
    """The person has not decided yet; the client asks again after its interval."""

    code = "authorization_pending"


class SlowDown(GrantRefused):
    """The client asks too often; its interval is now 5 s longer."""

    code = "slow_down"


class CodeExpired(GrantRefused):
    """Nobody decided in time; the client begins anew."""

    code = "expired_token"


class AccessDenied(GrantRefused):
    """The person said no."""

    code = "access_denied"


class AddressRefused(InvalidInput):
    """A URL leads to an address that this server does not connect to for its users."""

    code = "address-refused"


class WeakPassword(InvalidInput):
    """A new password is too easy to guess."""

    status = 400
    code = "weak-password"


class LinkUnusable(InvalidInput):
    """A one-time link is unknown, was used, or has expired."""

    status = 400
    code = "link-unusable"


class LoginFailed(UaitError):
    """A login through an identity provider did not hold; `reason` says in a word why."""

    status = 400
    code = "login-failed"


class Unauthenticated(UaitError):
    """The caller did not prove who they are."""

    status = 401
    code = "unauthenticated"


class SignatureRefused(Unauthenticated):
    """A request that must be signed (RFC 9421) is not, or its signature does not hold."""

    code = "signature-refused"


class PermissionDenied(UaitError):
    """The caller is known and may not do this."""

    status = 403
    code = "permission-denied"


class ReauthenticationNeeded(PermissionDenied):
    """The caller may do this after a fresh proof of who they are."""

    code = "reauthenticate"


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


class UnsupportedMediaType(UaitError):
    """The body is of another type or encoding than this operation reads."""

    status = 415
    code = "unsupported-media-type"


class BudgetExceeded(UaitError):
    """A call does not fit into a budget any more; it was not made. Trying again soon is no use."""

    status = 429
    code = "budget-exceeded"


class Busy(UaitError):
    """A queue is full; the caller may try again later."""

    status = 429
    code = "busy"


class TooManyAttempts(Busy):
    """Too many logins failed; `retry_after` (seconds) says when the next one is heard."""

    code = "too-many-attempts"


class SealBroken(UaitError):
    """What is sealed under the master key was changed, swapped, rolled back or cannot be opened."""

    code = "seal-broken"


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


class UpstreamFailed(ModelUnavailable):
    """A model's provider does not answer, refuses, or answers what cannot be understood."""

    code = "upstream-failed"


class UpstreamRefused(UpstreamFailed):
    """A provider does not take our key, or knows no such model: for an administrator to mend."""

    code = "upstream-refused"


class StreamCut(ModelUnavailable):
    """An answer broke off in its middle; what came of it is void."""

    code = "stream-cut"


class ProviderUnavailable(Unavailable):
    """An identity provider does not answer, or not in a way that can be used."""

    code = "provider-unavailable"


class CircuitOpen(Unavailable):
    """A part failed too often and is left alone for now; `retry_after` (seconds) says how long."""

    code = "circuit-open"


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
