"""A database with people, and the parts that keep their second factors; the clock stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from uait_server_ext.events.audit import AuditEvent
from uait_server_ext.identity.directory import Directory, Standing
from uait_server_ext.identity.factors import Factors
from uait_server_ext.identity.passkeys import Passkeys
from uait_server_ext.identity.tables import role_grants, users
from uait_server_ext.identity.throttle import Throttle
from uait_server_ext.storage.database import Database, sqlite_url

Result = TypeVar("Result")

START = 1_800_000_000.0
ADA, BEN = "usr_ada", "usr_ben"


class PlainSeals:
    """Keeps in memory what the real one seals."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def put(self, connection: Connection, name: str, plaintext: bytes) -> None:
        self.values[name] = plaintext

    def get(self, connection: Connection, name: str) -> bytes:
        return self.values[name]

    def delete(self, connection: Connection, name: str) -> None:
        self.values.pop(name, None)


class Events:
    """Remembers what was written to the audit log."""

    def __init__(self) -> None:
        self.all: list[AuditEvent] = []

    def append(self, connection: Connection, event: AuditEvent) -> None:
        self.all.append(event)

    async def record(self, event: AuditEvent) -> None:
        self.all.append(event)

    def named(self, action: str) -> list[str]:
        """Return the outcomes of the events of one action."""
        return [event.outcome for event in self.all if event.action == action]


@dataclass
class World:
    """The parts of a test."""

    database: Database
    seals: PlainSeals
    events: Events
    factors: Factors
    passkeys: Passkeys
    directory: Directory
    time: float = START

    def later(self, seconds: float) -> None:
        """Move the clock."""
        self.time += seconds

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work in a transaction."""
        return self.database.write_now(work)

    def standing(self, user_id: str) -> Standing:
        """Return a person's standing."""
        standing = self.database.read_now(lambda c: self.directory.standing(c, user_id))
        assert standing
        return standing


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end."""
    return asyncio.run(work)


@contextmanager
def world(folder: Path, required_roles: tuple[str, ...] = ()) -> Iterator[World]:
    """Build a database with Ada, an administrator, and Ben, a viewer."""
    database = Database(sqlite_url(folder / "uait.db"))
    database.open()
    seals, events = PlainSeals(), Events()
    built: World

    def clock() -> float:
        return built.time

    audit: Any = events
    built = World(
        database=database,
        seals=seals,
        events=events,
        factors=Factors(database, seals, audit, Throttle(database, clock), clock, required_roles),
        passkeys=Passkeys(database, audit, clock),
        directory=Directory(database, audit, clock),
    )

    def people(connection: Connection) -> None:
        for user_id, name, role in ((ADA, "ada", "admin"), (BEN, "ben", "viewer")):
            connection.execute(
                users.insert().values(
                    id=user_id,
                    username=name,
                    username_key=name,
                    display_name=name.title(),
                    created_at=START,
                )
            )
            connection.execute(role_grants.insert().values(role=role, user_id=user_id))

    database.write_now(people)
    yield built
    database.close()
