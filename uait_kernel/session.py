"""The connection of this kernel: found once, kept while it works, forgotten when it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .client import Client
from .discovery import find_server, server_at
from .endpoint import Server
from .errors import NoAnswer, PermissionDenied, Unauthenticated, UsageMistake

# Setting one of these in a running kernel takes effect with the next request.
VARIABLES = ("UAIT_URL", "UAIT_TOKEN")


class Session:
    """Remembers which server this kernel uses."""

    def __init__(self, find: Callable[[], Server] = find_server) -> None:
        self._find = find
        self._given: Server | None = None
        self._found: Server | None = None
        self._found_for: tuple[str | None, ...] = ()

    def connect(self, url: str | None = None, token: str | None = None) -> Client:
        """Use this server from now on, or search anew without an address; check that it answers.

        Raises:
            UsageMistake: a token without an address.
            UaitClientError: it does not answer, or refuses the token; then nothing has changed.
        """
        if url is None:
            if token is not None:
                raise UsageMistake("A token alone says no server. Give its address too.")
            server = self._find()
        else:
            server = server_at(url, token, "given to connect")
        client = Client.of(server)
        client.health()
        self._given = server if url is not None else None
        self._found, self._found_for = server, _environment()
        return client

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Lend a client; a server that was found and then fails is searched for again next time."""
        try:
            yield Client.of(self._server())
        except (NoAnswer, Unauthenticated, PermissionDenied):
            self._found = None
            raise

    def known_client(self, *, timeout: float) -> Client | None:
        """Return a client without searching for a server, None where none is known yet."""
        server = self._given or self._found
        return None if server is None else Client.of(server, timeout=timeout)

    def _server(self) -> Server:
        """Return the server to use, searching where none is known."""
        if self._given is not None:
            return self._given
        if self._found is None or self._found_for != _environment():
            self._found, self._found_for = self._find(), _environment()
        return self._found


def _environment() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in VARIABLES)


SESSION = Session()
