"""Trying again what may be tried again: with jitter, within a deadline, as the other side asks.

A thin layer over stamina: only errors that say the other side could not serve the call are tried
again, and an error's `retry_after` (seconds) takes the place of the computed wait.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from uait_server_ext.errors import Busy, DeadlineExceeded, DependencyMissing, Unavailable

Result = TypeVar("Result")

WAIT_INITIAL_SECONDS = 0.1
WAIT_MOST_SECONDS = 5.0
JITTER_SECONDS = 0.2


def retriable(error: Exception) -> bool:
    """Tell whether the same call might succeed a moment later."""
    return isinstance(error, (Busy, Unavailable)) and not isinstance(
        error, (DeadlineExceeded, DependencyMissing)
    )


async def retried(
    call: Callable[[], Awaitable[Result]],
    *,
    attempts: int,
    deadline: float | None = None,
    may_retry: Callable[[Exception], bool] = retriable,
    jitter: float = JITTER_SECONDS,
) -> Result:
    """Call, and call again where that may help; the call must be idempotent.

    Args:
        attempts: in all.
        deadline: of `time.monotonic`; a wait that would pass it is not begun.

    Raises:
        Exception: the last call's.
    """
    try:
        return await call()  # outside of what follows, which costs more than most calls need
    except Exception as error:
        if attempts < 2 or not may_retry(error):
            raise
        failed: Exception | None = error
    import stamina

    # Its log line would say that something was tried again and not what; callers record that.
    stamina.instrumentation.set_on_retry_hooks(())

    def again(error: Exception) -> bool | float:
        asked = float(getattr(error, "extensions", {}).get("retry_after", 0.0))
        left = math.inf if deadline is None else deadline - time.monotonic()
        if not may_retry(error) or max(asked, WAIT_INITIAL_SECONDS) >= left:
            return False
        return asked + random.uniform(0, jitter) if asked else True  # noqa: S311 - no secret

    async for attempt in stamina.retry_context(
        on=again,
        attempts=attempts,
        timeout=None,
        wait_initial=WAIT_INITIAL_SECONDS,
        wait_max=WAIT_MOST_SECONDS,
        wait_jitter=jitter,
    ):
        with attempt:
            if failed is not None:
                first, failed = failed, None
                raise first
            return await call()
    raise AssertionError("the last attempt returns or raises")
