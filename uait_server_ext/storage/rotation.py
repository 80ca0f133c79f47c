"""Change the master key: resumable and idempotent, while readers and writers go on.

::

    1. keep the new key beside the old one, durably          (the source has both)
    2. name it the key in force                              (new values are sealed under it)
    3. put every data key under it, some hundred in a transaction
    4. when none is left under the old one: retire that      (same lock as a writer's)
    5. forget the old key in the source

A process that is killed anywhere leaves every value readable with a key that the source has;
`rotate` goes on where it stopped. A copy of the database from before needs its old key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select, update

from .database import Database
from .ids import Clock, now
from .master_key import CURRENT, RETIRED, RETIRING, Keyring, MasterKey, current_id
from .sealing import COLUMNS, HEAD, envelope, rewrap
from .tables import master_keys, sealed_values

BATCH = 500

Progress = Callable[[int, int], None]
"""Is told how many values are done, of how many."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did."""

    key_id: str
    rewrapped: int
    resumed: bool


def rotate(
    database: Database,
    keyring: Keyring,
    *,
    batch: int = BATCH,
    clock: Clock = now,
    progress: Progress = lambda _done, _total: None,
) -> Rotation:
    """Put all values under a new master key, or finish a rotation that was broken off. Blocks.

    Raises:
        Unavailable: the source of the master key cannot be read or written.
        SealBroken: a value does not open; the rotation stays resumable.
    """
    resumed = database.write_now(lambda connection: begin(connection, keyring, clock))
    total = database.read_now(left)
    done = 0
    while count := database.write_now(lambda c: rewrap_some(c, keyring, batch)):
        done += count
        progress(done, max(total, done))
    key_id = database.write_now(lambda connection: finish(connection, clock))
    forget(database, keyring)
    return Rotation(key_id, done, resumed)


def begin(connection: Connection, keyring: Keyring, clock: Clock) -> bool:
    """Name a new key the one in force, unless a rotation is under way; tell which."""
    lock(connection)
    if connection.scalar(select(master_keys.c.id).where(master_keys.c.state == RETIRING)):
        return True
    known = set(connection.scalars(select(master_keys.c.id)))
    # A key that the source has and the database never saw is one that a killed rotation left.
    unseen = [key_id for key_id in keyring.ids() if key_id not in known]
    if unseen:
        new_id = unseen[0]
    else:
        new = MasterKey.generate()
        keyring.add(new)
        new_id = new.id
    connection.execute(
        update(master_keys)
        .where(master_keys.c.state == CURRENT)
        .values(state=RETIRING, since=clock())
    )
    connection.execute(master_keys.insert().values(id=new_id, state=CURRENT, since=clock()))
    return bool(unseen)


def left(connection: Connection) -> int:
    """Return how many values are not yet under the key in force."""
    row = sealed_values.c
    counted = select(func.count()).where(row.key_id != current_id(connection))
    return connection.scalar(counted.select_from(sealed_values)) or 0


def rewrap_some(connection: Connection, keyring: Keyring, batch: int) -> int:
    """Put the data keys of up to `batch` values under the key in force; return how many."""
    lock(connection)
    new = keyring.current(connection)
    row = sealed_values.c
    rows = connection.execute(select(*COLUMNS).where(row.key_id != new.id).limit(batch)).all()
    renewed = [
        rewrap(keyring.key(old.key_id), new, old) for old in (envelope(found) for found in rows)
    ]
    if renewed:
        connection.execute(
            update(sealed_values)
            .where(row.name == bindparam("of"))
            .values(key_id=new.id, wrapped=bindparam("under")),
            [{"of": each.name, "under": each.wrapped} for each in renewed],
        )
    return len(rows)


def finish(connection: Connection, clock: Clock) -> str:
    """Retire the old key once nothing is under it; return the id of the one in force."""
    lock(connection)
    if not left(connection):
        connection.execute(
            update(master_keys)
            .where(master_keys.c.state == RETIRING)
            .values(state=RETIRED, since=clock())
        )
    key_id = current_id(connection)
    assert key_id
    return key_id


def forget(database: Database, keyring: Keyring) -> None:
    """Delete retired keys from the source."""

    def work(connection: Connection) -> None:
        ids = select(master_keys.c.id).where(master_keys.c.state == RETIRED)
        keyring.drop(set(connection.scalars(ids)))

    database.write_now(work)  # not beside another process that adds a key


def lock(connection: Connection) -> None:
    """Wait for writers of sealed values: they take the same lock."""
    head = select(sealed_values.c.name).where(sealed_values.c.name == HEAD)
    connection.execute(head.with_for_update())
