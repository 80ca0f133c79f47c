"""The SQL database of users, keys, sessions, secrets and events: SQLite, or PostgreSQL by URL.

Work is a plain function of a SQLAlchemy connection; it runs in a thread, never in the event loop.
`write` is one transaction: it commits when the function returns and rolls back when it raises.
Domains declare their tables on `metadata`; `migrations/` brings a database up to date.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    make_url,
    select,
    update,
)
from sqlalchemy.exc import OperationalError

from uait_server_ext.errors import Unavailable

Result = TypeVar("Result")

BUSY_SECONDS = 10.0
READERS = 4
WRITE = "uait_write"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

generations = Table(
    "generations",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", Integer, nullable=False),
)
"""One number a subject, raised by every write that makes cached answers about it stale."""


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file."""
    return f"sqlite:///{path.absolute()}"


class Database:
    """One database; `open` it before use, `close` it at the end."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.engine = create_engine(self.url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="uait-db-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="uait-db-write")
        self._writing = threading.Lock()
        self._probe: sqlite3.Connection | None = None
        if self.is_sqlite:
            event.listen(self.engine, "connect", prepare_sqlite)
            event.listen(self.engine, "begin", begin_sqlite)

    def open(self) -> None:
        """Create or migrate the database; blocks.

        Raises:
            Conflict: a newer UAIT has written it.
            Unavailable: it cannot be reached.
        """
        from .migrations import migrate

        try:
            if self.is_sqlite and self.url.database:
                create_private(Path(self.url.database))
            migrate(self.engine)
        except (OSError, OperationalError) as error:
            reason = error.orig if isinstance(error, OperationalError) else error.strerror
            raise Unavailable(
                f"The database {self.url.render_as_string()} cannot be opened: {reason}. "
                "Check the address and that the disk is writable."
            ) from None

    def close(self) -> None:
        """End the threads and close every connection."""
        self._readers.shutdown()
        self._writer.shutdown()
        if self._probe:
            self._probe.close()
        self.engine.dispose()

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run work that only reads, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, lambda: self.read_now(work)
        )

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run work in a thread as one transaction; writes of this process go one after another."""
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, lambda: self.write_now(work)
        )

    def read_now(self, work: Callable[[Connection], Result]) -> Result:
        """Run work that only reads; blocks."""
        with self.engine.connect() as connection:
            return work(connection)

    def write_now(self, work: Callable[[Connection], Result]) -> Result:
        """Run work as one transaction; blocks."""
        with (
            self._writing,
            self.engine.connect().execution_options(**{WRITE: True}) as connection,
            connection.begin(),
        ):
            return work(connection)

    async def generation(self, name: str) -> int:
        """Return the number that `raise_generation` last gave a subject.

        On SQLite this is some 10 µs in the event loop: cheaper than a thread.
        """
        if self.is_sqlite:
            if self._probe is None:
                assert self.url.database
                self._probe = sqlite3.connect(
                    f"{Path(self.url.database).as_uri()}?mode=ro", uri=True, check_same_thread=False
                )
                self._probe.isolation_level = None
            row = self._probe.execute(
                "SELECT value FROM generations WHERE name = ?", (name,)
            ).fetchone()
            return int(row[0]) if row else 0
        return await self.read(lambda connection: read_generation(connection, name))


def read_generation(connection: Connection, name: str) -> int:
    """Return a subject's number, 0 where it never changed."""
    return connection.scalar(select(generations.c.value).where(generations.c.name == name)) or 0


def raise_generation(connection: Connection, name: str) -> None:
    """Make cached answers about a subject stale, in the transaction that changes it."""
    changed = connection.execute(
        update(generations).where(generations.c.name == name).values(value=generations.c.value + 1)
    )
    if not changed.rowcount:
        connection.execute(generations.insert().values(name=name, value=1))


def prepare_sqlite(connection: Any, _record: object) -> None:
    """Set a new SQLite connection up: WAL, durable, foreign keys, transactions by hand."""
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {int(BUSY_SECONDS * 1000)}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def begin_sqlite(connection: Connection) -> None:
    """Take the write lock at the start, so that a read in a transaction is not overtaken."""
    immediate = connection.get_execution_options().get(WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def create_private(path: Path) -> None:
    """Create a file that only its owner can read, unless it is there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
