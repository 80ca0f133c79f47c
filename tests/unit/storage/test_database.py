"""The SQL database: transactions, threads, other processes, and its schema's number."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text

from uait_server_ext.errors import Conflict, Unavailable
from uait_server_ext.events import tables as _events
from uait_server_ext.identity import tables as _identity
from uait_server_ext.inference.tuning import tables as _tuning
from uait_server_ext.routing import tables as _routing
from uait_server_ext.storage.database import (
    Database,
    generations,
    metadata,
    raise_generation,
    sqlite_url,
)
from uait_server_ext.vault import tables as _vault

DECLARED = (
    _events,
    _identity,
    _routing,
    _tuning,
    _vault,
)  # imported, their tables are on `metadata`


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(sqlite_url(tmp_path / "state" / "uait.db"))
    database.open()
    yield database
    database.close()


def names(connection: Connection) -> list[str]:
    return sorted(connection.scalars(select(generations.c.name)))


def test_the_migrations_make_exactly_the_declared_tables(database: Database) -> None:
    assert len(DECLARED) == 5
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        differences = [
            change
            for change in compare_metadata(context, metadata)
            if change[:1] != ("remove_table",) or change[1].name != "alembic_version"
        ]
    assert differences == []


def test_the_file_is_its_owners_alone(database: Database) -> None:
    assert database.url.database
    assert stat.S_IMODE(Path(database.url.database).stat().st_mode) == 0o600


def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(insert(generations).values(name="half", value=1))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        asyncio.run(database.write(work))
    assert asyncio.run(database.read(names)) == []


def test_writes_from_many_tasks_lose_nothing(database: Database) -> None:
    async def all_at_once() -> None:
        await asyncio.gather(
            *(database.write(lambda c: raise_generation(c, "people")) for _ in range(50))
        )

    asyncio.run(all_at_once())
    assert asyncio.run(database.generation("people")) == 50


def test_a_write_of_another_process_is_seen(database: Database) -> None:
    assert asyncio.run(database.generation("people")) == 0
    script = (
        "import sys; from uait_server_ext.storage.database import Database, raise_generation\n"
        "d = Database(sys.argv[1]); d.open()\n"
        "for _ in range(20): d.write_now(lambda c: raise_generation(c, 'people'))\n"
        "d.close()"
    )
    command = [sys.executable, "-c", script, database.url.render_as_string()]
    others = [subprocess.Popen(command) for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    assert asyncio.run(database.generation("people")) == 40


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        database = Database(sqlite_url(tmp_path / "uait.db"))
        database.open()
        database.write_now(lambda c: raise_generation(c, "opened"))
        database.close()
    again = Database(sqlite_url(tmp_path / "uait.db"))
    again.open()
    assert asyncio.run(again.generation("opened")) == 2
    again.close()


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    database.write_now(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(Conflict, match="newer UAIT"):
        Database(database.url.render_as_string()).open()
    with pytest.raises(Conflict):
        database.open()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    database = Database(sqlite_url(tmp_path / "file" / "uait.db"))
    with pytest.raises(Unavailable, match="cannot be opened"):
        database.open()
    database.close()


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    def slow(connection: Connection) -> list[str]:
        connection.execute(insert(generations).values(name="slow", value=1))
        # While this transaction holds the write lock, another thread reads the state before it.
        return database.read_now(names)

    assert database.write_now(slow) == []
    assert database.read_now(names) == ["slow"]
