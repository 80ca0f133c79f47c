"""Leave a provider alone for a while after it failed several times in a row."""

from __future__ import annotations

from uait_server_ext.storage.ids import Clock

FAILURES = 3
OPEN_SECONDS = 30.0


class Breaker:
    """Closed: calls pass. Open after `FAILURES` in a row: then one call each `OPEN_SECONDS`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.failures = 0
        self.open_until = 0.0

    def admits(self) -> bool:
        """Tell whether a call may be tried now; of callers at the same time one is let through."""
        if self.failures < FAILURES:
            return True
        if self.clock() < self.open_until:
            return False
        self.open_until = self.clock() + OPEN_SECONDS
        return True

    def succeeded(self) -> None:
        """Close: it works."""
        self.failures = 0

    def failed(self) -> None:
        """Count a failure."""
        self.failures += 1
        self.open_until = self.clock() + OPEN_SECONDS
