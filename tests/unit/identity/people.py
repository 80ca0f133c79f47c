"""An identity on a real database with a clock that stands still, quick to make.

The database is migrated once; each test works on a copy of it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from uait_server_ext.events.audit import AuditQuery
from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.login import Client
from uait_server_ext.identity.passwords import Passwords
from uait_server_ext.identity.principal import Principal
from uait_server_ext.identity.service import Identity, IdentitySettings
from uait_server_ext.services import Foundation, Settings, open_foundation

Result = TypeVar("Result")

START = 1_800_000_000.0
PASSWORD = "correct horse battery staple"
CLIENT = Client(address="192.0.2.1", user_agent="pytest")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end."""
    return asyncio.run(work)


@functools.cache
def migrated() -> Path:
    """Return a folder with an up-to-date, empty database and its key."""
    folder = Path(tempfile.mkdtemp(prefix="uait-migrated-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    opened(folder).close()
    return folder


def opened(folder: Path) -> Foundation:
    return open_foundation(Settings(data_dir=folder, model_cache=folder, root_dir=folder))


@dataclass
class People:
    """The identity of a server without the server."""

    identity: Identity
    foundation: Foundation
    time: float = START
    ids: dict[str, str] = field(default_factory=dict)

    def later(self, seconds: float) -> None:
        """Move the clock."""
        self.time += seconds

    def write(self, work: Callable[[Connection], Result]) -> Result:
        return self.identity.database.write_now(work)

    def read(self, work: Callable[[Connection], Result]) -> Result:
        return self.identity.database.read_now(work)

    def add(self, name: str, *roles: str, password: str | None = None) -> str:
        """Add a person; return their id."""
        hashed = self.identity.passwords.hash_now(password) if password else None
        self.ids[name] = run(
            self.identity.directory.add(OPERATOR, name, roles=roles, password_hash=hashed)
        )
        return self.ids[name]

    def principal(self, name: str) -> Principal:
        """Return a person as their session shows them."""
        standing = self.read(lambda c: self.identity.directory.standing(c, self.ids[name]))
        assert standing
        return Principal(
            id=standing.user_id,
            name=name,
            permissions=standing.permissions,
            authenticated_at=self.time,
        )

    def epoch(self, name: str) -> int:
        standing = self.read(lambda c: self.identity.directory.standing(c, self.ids[name]))
        assert standing
        return standing.epoch

    def events(self, action: str) -> list[tuple[str, str | None]]:
        """Return (outcome, principal) of an action's audit events, the oldest first."""
        page = run(self.identity.audit.query(AuditQuery(action=action, limit=500)))
        return [(event.outcome, event.principal) for event in reversed(page.events)]


@contextmanager
def people(folder: Path, **settings: Any) -> Iterator[People]:
    """Build an identity without people."""
    state = folder / "state"
    shutil.copytree(migrated(), state)
    foundation = opened(state)
    built: People

    def clock() -> float:
        return built.time

    identity = Identity(
        IdentitySettings(**settings),
        database=foundation.database,
        sealer=foundation.sealer,
        audit=foundation.audit,
        clock=clock,
    )
    # The real costs are tested in test_passwords; elsewhere a hash only has to be one.
    identity.passwords = Passwords(memory_kib=8, passes=1)
    built = People(identity, foundation)
    try:
        yield built
    finally:
        identity.passwords.close()
        foundation.close()
