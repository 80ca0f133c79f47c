"""A database, a master key, an audit log and a vault in a folder, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from uait_server_ext.events.audit import AuditEvent, AuditLog
from uait_server_ext.identity.principal import PERMISSIONS, Principal
from uait_server_ext.storage.database import Database, sqlite_url
from uait_server_ext.storage.key_sources import open_source
from uait_server_ext.storage.master_key import open_keyring
from uait_server_ext.storage.sealing import Sealer
from uait_server_ext.vault.models import NewSecret, SecretContent
from uait_server_ext.vault.service import Vault

CANARY = "canary-9f3b1c77-do-not-leak"
ADA = Principal("usr_ada", "Ada", permissions=frozenset(PERMISSIONS))
BEN = Principal("usr_ben", "Ben", permissions=frozenset(PERMISSIONS))
EVE = Principal("usr_eve", "Eve", permissions=frozenset({"vault:read"}))


@dataclass
class State:
    """What a test has at hand."""

    folder: Path
    database: Database
    sealer: Sealer
    audit: AuditLog
    vault: Vault
    time: list[float] = field(default_factory=lambda: [1000.0])

    def sql(self, statement: str, **values: Any) -> Any:
        """Change the database behind UAIT's back."""
        rows = self.database.write_now(lambda c: execute(c, statement, values))
        return rows

    def rows(self, statement: str, **values: Any) -> list[Any]:
        """Read rows."""
        return self.database.read_now(lambda c: list(c.execute(text(statement), values)))

    def actions(self) -> list[tuple[str, str]]:
        """Return (action, outcome) of every event, in order."""
        rows = self.rows("SELECT action, outcome FROM audit_events ORDER BY sequence")
        return [(action, outcome) for action, outcome in rows]


def execute(connection: Any, statement: str, values: dict[str, Any]) -> Any:
    done = connection.execute(text(statement), values)
    return done.all() if done.returns_rows else done.rowcount


@contextmanager
def opened(folder: Path, key: str = "file:", **options: Any) -> Iterator[State]:
    """Open (or create) a state in a folder."""
    time = [1000.0]
    clock: Callable[[], float] = lambda: time[0]  # noqa: E731
    database = Database(sqlite_url(folder / "uait.db"))
    database.open()
    try:
        sealer = Sealer(open_keyring(database, open_source(key, folder / "keys")))
        audit = AuditLog(database, sealer, folder / "audit.anchor", clock=clock)
        audit.open()
        vault = Vault(database, sealer, audit, clock=clock, **options)
        yield State(folder, database, sealer, audit, vault, time)
    finally:
        database.close()


def new(name: str = "openai", value: str = CANARY, **options: Any) -> NewSecret:
    """Build a request for a new secret."""
    return NewSecret(name=name, value=SecretStr(value), **options)


def content(value: str) -> SecretContent:
    """Build a request for a new value."""
    return SecretContent(value=SecretStr(value))


def event(action: str = "login.password", **fields: Any) -> AuditEvent:
    """Build an event."""
    return AuditEvent(action=action, outcome="ok", **fields)
