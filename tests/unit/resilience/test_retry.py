"""What is tried again, how often, and how long it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from uait_server_ext.errors import (
    Busy,
    DeadlineExceeded,
    DependencyMissing,
    InvalidInput,
    Unavailable,
)
from uait_server_ext.resilience.retry import retriable, retried


class Flaky:
    """Fails with these errors, then returns how often it was called."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def run(call: Callable[[], object], attempts: int = 3, **options: float) -> int:
    return asyncio.run(retried(call, attempts=attempts, jitter=0.01, **options))  # type: ignore[arg-type]


def test_what_could_not_be_served_is_tried_again() -> None:
    assert run(Flaky()) == 1
    assert run(Flaky(Unavailable("x"), Busy("x"))) == 3


def test_the_last_error_is_raised_when_attempts_are_used_up() -> None:
    call = Flaky(Unavailable("1"), Unavailable("2"), Unavailable("3"))
    with pytest.raises(Unavailable, match="3"):
        run(call)
    assert call.calls == 3
    once = Flaky(Unavailable("1"))
    with pytest.raises(Unavailable):
        run(once, attempts=1)
    assert once.calls == 1


@pytest.mark.parametrize("error", [InvalidInput("x"), DeadlineExceeded("x"), ValueError("x")])
def test_what_would_fail_again_is_not(error: Exception) -> None:
    call = Flaky(error)
    with pytest.raises(type(error)):
        run(call)
    assert call.calls == 1
    assert not retriable(DependencyMissing("x"))


def test_the_other_side_says_how_long_to_wait() -> None:
    began = time.monotonic()
    assert run(Flaky(Busy("x", retry_after=0.5))) == 2
    assert time.monotonic() - began >= 0.5


def test_no_wait_passes_the_deadline() -> None:
    call = Flaky(Busy("x", retry_after=60))
    with pytest.raises(Busy):
        run(call, deadline=time.monotonic() + 1)
    assert call.calls == 1
