"""The logins of a server without the server: a database, people, and browsers that begin logins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from uait_server_ext.events.audit import AuditEvent
from uait_server_ext.identity.directory import OPERATOR
from uait_server_ext.identity.oidc.configuration import read_providers
from uait_server_ext.identity.oidc.logins import Callback, Finished, OidcLogins, Place
from uait_server_ext.identity.principal import ROLES, Principal
from uait_server_ext.identity.service import Identity, IdentitySettings
from uait_server_ext.identity.sessions import Session
from uait_server_ext.identity.tables import external_accounts, users
from uait_server_ext.storage.database import Database, sqlite_url
from uait_server_ext.storage.ids import now

Result = TypeVar("Result")
ORIGIN, BASE_URL = "https://uait.example.org", "/lab7/"


class Seals:
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

    def refusals(self) -> list[Any]:
        """Return the reasons of the logins that did not succeed."""
        return [event.detail["reason"] for event in self.all if event.outcome != "ok"]


@dataclass
class Browser:
    """What one browser keeps: the binding cookie."""

    binding: str | None = None

    def place(self) -> Place:
        return Place(ORIGIN, BASE_URL, "203.0.113.7", self.binding)


@dataclass
class World:
    """One server's logins."""

    identity: Identity
    events: Events
    seals: Seals
    late: float = 0.0
    browser: Browser = field(default_factory=Browser)

    @property
    def database(self) -> Database:
        return self.identity.database

    @property
    def logins(self) -> OidcLogins:
        return self.identity.oidc

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run(work)

    def user(self, name: str, role: str = "viewer", email: str | None = None) -> str:
        """Make a local user and return the id."""
        return self.database.write_now(
            lambda c: self.identity.directory.create(
                c, OPERATOR, username=name, roles=(role,), email=email, password_hash="x"
            )
        )

    def session(self, user_id: str) -> tuple[str, Session]:
        """Log a user in with a password."""
        return self.run(
            self.identity.sessions.start(
                user_id, 0, ("password",), False, "203.0.113.7", "test browser"
            )
        )

    def principal(self, user_id: str, session: Session) -> Principal:
        return Principal(
            id=user_id,
            name=user_id,
            permissions=ROLES["viewer"],
            credential=session.id,
            authenticated_at=session.authenticated_at,
        )

    def begin(
        self, provider: str, browser: Browser | None = None, next_url: str | None = None
    ) -> str:
        """Begin a login and return where the browser is sent."""
        browser = browser or self.browser
        begun = self.run(self.logins.begin(provider, browser.place(), next_url))
        browser.binding = begun.binding
        return begun.url

    def finish(
        self, provider: str, query: dict[str, str], browser: Browser | None = None
    ) -> Finished:
        """Come back from the provider."""
        callback = Callback(
            state=query.get("state"),
            code=query.get("code"),
            issuer=query.get("iss"),
            error=query.get("error"),
        )
        place = (browser or self.browser).place()
        return self.run(self.logins.finish(provider, callback, place))

    def who(self, finished: Finished) -> str:
        """Return the name of the user who may log in now."""
        assert finished.purpose == "login"
        name = self.database.read_now(
            lambda c: c.scalar(select(users.c.username).where(users.c.id == finished.user_id))
        )
        assert isinstance(name, str)
        return name

    def linked(self) -> list[tuple[str, str]]:
        """Return subject and owner of each external account."""
        rows = self.database.read_now(
            lambda c: c.execute(
                select(external_accounts.c.subject, users.c.username).join(users)
            ).all()
        )
        return [(row[0], row[1]) for row in rows]

    def usernames(self) -> list[str]:
        return sorted(self.database.read_now(lambda c: c.scalars(select(users.c.username)).all()))


@contextmanager
def world(
    folder: Path, providers: list[dict[str, Any]], secrets: dict[str, str]
) -> Iterator[World]:
    """Open a database in a folder, with one administrator, and the logins on it."""
    database = Database(sqlite_url(folder / "uait.db"))
    database.open()
    events, seals = Events(), Seals()
    made: list[World] = []

    def clock() -> float:
        return now() + (made[0].late if made else 0.0)

    anything: Callable[[object], Any] = lambda double: double  # noqa: E731
    settings = IdentitySettings(oidc_providers=read_providers(providers), client_secrets=secrets)
    identity = Identity(
        settings, database=database, sealer=anything(seals), audit=anything(events), clock=clock
    )
    made.append(World(identity, events, seals))
    made[0].user("root", "admin")
    try:
        yield made[0]
    finally:
        database.close()
