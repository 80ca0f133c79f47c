"""Who a request counts against, and the headers that tell a client how much it has left.

The headers are `RateLimit-Limit`, `-Remaining`, `-Reset` as deployed clients read them, and
`RateLimit`, `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers.
"""

from __future__ import annotations

from uait_server_ext.errors import Busy
from uait_server_ext.identity.principal import Principal
from uait_server_ext.resilience.limits import Allowance, RateClass, subject


def rate_subjects(principal: Principal | None, address: str) -> list[str]:
    """Return the subjects of one request: its address, its user, its API key."""
    subjects = [subject("ip", address)]
    if principal is not None:
        subjects.append(subject("user", principal.id))
        if principal.kind == "api-key" and principal.credential:
            subjects.append(subject("key", principal.credential))
    return subjects


def rate_headers(rate_class: RateClass, allowance: Allowance) -> dict[str, str]:
    """Return the headers of an answer that was within the limits."""
    return {
        "RateLimit-Limit": str(allowance.limit),
        "RateLimit-Remaining": str(allowance.remaining),
        "RateLimit-Reset": str(allowance.reset_seconds),
        "RateLimit": f'"{rate_class}";r={allowance.remaining};t={allowance.reset_seconds}',
        "RateLimit-Policy": f'"{rate_class}";q={allowance.limit};w={allowance.window_seconds}',
    }


def refusal_headers(rate_class: RateClass, error: Busy) -> dict[str, str]:
    """Return the headers of a refusal by `RateLimits.hit`; of another `Busy`, `Retry-After`."""
    retry_after = error.extensions.get("retry_after")
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if "limit" in error.extensions and retry_after is not None:
        headers |= rate_headers(
            rate_class,
            Allowance(error.extensions["limit"], 0, int(retry_after), error.extensions["window"]),
        )
    return headers
