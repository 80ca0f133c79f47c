"""Open connections end with what let them in: a WebSocket or a stream outlives no login.

Jupyter asks who is there once, when a connection opens. Here every open WebSocket and event stream
is asked again every `EVERY_SECONDS`, of whatever extension it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from uait_server_ext.errors import UaitError

from .authenticate import Presented
from .jupyter_routes import OPEN, OWN

if TYPE_CHECKING:
    from .authenticate import Authenticator

EVERY_SECONDS = 2.0
POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1

log = logging.getLogger(__name__)


class OpenConnections:
    """The WebSockets and streams that are open, each with what let it in."""

    def __init__(self, authenticator: Authenticator, every_seconds: float = EVERY_SECONDS) -> None:
        self.authenticator = authenticator
        self.every_seconds = every_seconds
        self._open: dict[RequestHandler, tuple[Presented, str, Callable[[], Any]]] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def hold(
        self, handler: RequestHandler, presented: Presented, needed: str, end: Callable[[], Any]
    ) -> None:
        """Watch a connection until `release`; `end` is called when its login has ended."""
        self._open[handler] = (presented, needed, end)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._check_forever())

    def release(self, handler: RequestHandler) -> None:
        """Watch no longer."""
        self._open.pop(handler, None)

    def stop(self) -> None:
        """End the watch itself, when the server stops."""
        if self._task:
            self._task.cancel()

    async def _check_forever(self) -> None:
        while self._open:
            await asyncio.sleep(self.every_seconds)
            for handler, (presented, needed, end) in list(self._open.items()):
                if is_closed(handler):
                    self.release(handler)
                elif not await self._stands(presented, needed):
                    self.release(handler)
                    log.info("closed %s: its login has ended", handler.request.path)
                    end()

    async def _stands(self, presented: Presented, needed: str) -> bool:
        try:
            principal = await self.authenticator.identify(presented)
        except UaitError:
            return False
        return needed in (OPEN, OWN) or principal.may(needed)


def is_closed(handler: RequestHandler) -> bool:
    """Tell whether a connection is over already."""
    if isinstance(handler, WebSocketHandler):
        # Before the handshake there is no connection yet, and the request's stream is open.
        connection = handler.ws_connection
        return (connection is None and handler._finished) or bool(
            connection is not None and connection.is_closing()
        )
    return handler._finished


def end_socket(handler: WebSocketHandler) -> None:
    """Close a WebSocket, politely first."""
    handler.close(POLICY_VIOLATION, "the login has ended")
    connection = handler.ws_connection
    if connection is not None:
        asyncio.get_running_loop().call_later(1.0, abort, handler)


def abort(handler: WebSocketHandler) -> None:
    """Cut a connection whose client does not answer the close."""
    connection: Any = handler.ws_connection
    if connection is not None and not connection.stream.closed():
        connection.stream.close()
