"""Refused requests in the audit log: each kind once in a while, so that nobody can flood it.

A refusal by the route policy or of a credential happens before any operation, for every request of
whoever asks; it is written in the background and the request does not wait for it. Logins, keys and
secrets write their own events, each one, in their own transactions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from uait_server_ext.errors import UaitError
from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.storage.ids import Clock, now

EVERY_SECONDS = 10.0
KINDS = 10_000
WAITING = 100

log = logging.getLogger(__name__)


class Refusals:
    """Writes refusals to the audit log."""

    def __init__(self, audit: AuditLog, clock: Clock = now) -> None:
        self.audit = audit
        self.clock = clock
        self._written: OrderedDict[tuple[str | None, ...], float] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, event: AuditEvent) -> None:
        """Write an event, unless one of its kind was written in the last seconds."""
        kind = (event.action, event.principal, event.address, event.target)
        if self._written.get(kind, float("-inf")) > self.clock() - EVERY_SECONDS:
            return
        if len(self._tasks) >= WAITING:
            log.warning("too many refused requests: one is not in the audit log")
            return
        self._written[kind] = self.clock()
        self._written.move_to_end(kind)
        if len(self._written) > KINDS:
            self._written.popitem(last=False)
        task = asyncio.ensure_future(self._write(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, event: AuditEvent) -> None:
        try:
            await self.audit.record(event)
        except UaitError:
            log.exception("a refused request could not be written to the audit log")
