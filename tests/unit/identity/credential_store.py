"""A database with people, and what issues and checks their tokens and keys; the clock stands still.

Directory, sealing and audit log are the real ones: what a refusal records must be committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, select, update

import uait_server_ext.identity.tables as tables
import uait_server_ext.storage.tables  # noqa: F401 - their tables are made too
from uait_server_ext.events.audit import AuditLog
from uait_server_ext.events.tables import audit_events
from uait_server_ext.identity.api_keys import ApiKeys
from uait_server_ext.identity.devices import Devices
from uait_server_ext.identity.directory import Directory, Standing
from uait_server_ext.identity.principal import Principal
from uait_server_ext.identity.refresh import RefreshTokens
from uait_server_ext.identity.tokens import AccessTokens
from uait_server_ext.storage.database import Database, metadata, raise_generation, sqlite_url
from uait_server_ext.storage.key_sources import FileSource
from uait_server_ext.storage.master_key import open_keyring
from uait_server_ext.storage.sealing import Sealer

Result = TypeVar("Result")

START = 1_800_000_000.0
ISSUER = "uait-test"
ADA, BEN = "usr_ada", "usr_ben"
ROLES = {ADA: "admin", BEN: "viewer"}


@dataclass
class Store:
    """The parts of a test."""

    folder: Path
    database: Database
    time: float = START
    sealer: Sealer = field(init=False)
    audit: AuditLog = field(init=False)
    directory: Directory = field(init=False)

    def __post_init__(self) -> None:
        keys = open_keyring(self.database, FileSource(self.folder / "master.key"))
        self.sealer = Sealer(keys)
        self.audit = AuditLog(
            self.database, self.sealer, self.folder / "audit.anchor", clock=self.clock
        )
        self.audit.open()
        self.directory = Directory(self.database, self.audit, self.clock)
        self.tokens = AccessTokens(self.database, self.sealer, self.clock, ISSUER)
        self.refresh = RefreshTokens(
            self.database, self.directory, self.tokens, self.audit, self.clock
        )
        self.devices = Devices(self.database, self.directory, self.refresh, self.audit, self.clock)
        self.api_keys = ApiKeys(self.database, self.directory, self.sealer, self.audit, self.clock)

    def clock(self) -> float:
        """Return the time that a test has set."""
        return self.time

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

    def person(self, user_id: str = ADA, **changed: Any) -> Principal:
        """Return a person who has just logged in with a browser."""
        facts: dict[str, Any] = {
            "id": user_id,
            "name": user_id,
            "kind": "user",
            "permissions": self.standing(user_id).permissions,
            "credential": "ses_1",
            "authenticated_at": self.time,
        }
        return Principal(**facts | changed)

    def change_user(self, user_id: str, **values: Any) -> None:
        """Change a person's row as the directory would."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(tables.users).where(tables.users.c.id == user_id).values(**values)
            )
            raise_generation(connection, "identity")

        self.write(work)

    def events(self) -> list[tuple[str, str]]:
        """Return action and outcome of every event of the audit log."""
        query = select(audit_events.c.action, audit_events.c.outcome).order_by(
            audit_events.c.sequence
        )
        return self.database.read_now(
            lambda c: [(row.action, row.outcome) for row in c.execute(query)]
        )

    def count(self, table: Any) -> int:
        """Return the number of rows of a table."""
        return self.database.read_now(lambda c: len(c.execute(select(table)).all()))

    def login(self, user_id: str = ADA, scope: frozenset[str] = frozenset({"models:run"})) -> str:
        """Return the refresh token of a new login."""
        grant = self.write(
            lambda c: self.refresh.begin(
                c,
                user_id=user_id,
                epoch=self.standing(user_id).epoch,
                scope=scope,
                client="a test",
                authenticated_at=self.time,
            )
        )
        return grant.secret


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end."""
    return asyncio.run(work)


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """Build a database with Ada, an administrator, and Ben, a viewer."""
    database = Database(sqlite_url(folder / "uait.db"))
    metadata.create_all(database.engine)

    def people(connection: Connection) -> None:
        for user_id, role in ROLES.items():
            name = user_id.removeprefix("usr_")
            connection.execute(
                tables.users.insert().values(
                    id=user_id,
                    username=name,
                    username_key=name,
                    display_name=name.title(),
                    created_at=START,
                )
            )
            connection.execute(tables.role_grants.insert().values(role=role, user_id=user_id))

    database.write_now(people)
    try:
        yield Store(folder, database)
    finally:
        database.close()
