"""Sealed values: secrets in the database that only the master key opens.

::

    master key ──HKDF──> wrapping key ──AES-256-GCM──> data key ──AES-256-GCM──> value
                                         one a value, bound to (name, version, master key)

Each value carries the revision of the store at which it was put. A sealed head holds a keyed sum
over all (name, version): so a row that was put back to an older version, deleted or added by hand
is noticed at the next read. What is not noticed here is a head that was put back together with the
rows: the audit log records the head's revision in its chain and catches that.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, LargeBinary, case, cast, delete, insert, null, select, update

from uait_server_ext.errors import InvalidInput, NotFound, SealBroken

from .master_key import Keyring, MasterKey
from .tables import sealed_values

SCHEME = "uait-seal-1"
HEAD = "head"
NONCE_BYTES = 12
DATA_KEY_BITS = 256
SUM_BYTES = 32
MODULUS = 1 << (8 * SUM_BYTES)
MAX_NAME = 200
REMEMBERED_STEPS = 10_000

# SQLite lets anybody put text in a column of bytes; the casts make bytes of it, which do not open.
COLUMNS = (
    sealed_values.c.name,
    sealed_values.c.version,
    sealed_values.c.key_id,
    cast(sealed_values.c.wrapped, LargeBinary).label("wrapped"),
    cast(sealed_values.c.sealed, LargeBinary).label("sealed"),
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One row: a value under its data key, the data key under a master key."""

    name: str
    version: int
    key_id: str
    wrapped: bytes = field(repr=False)
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of all values: the store's revision and the keyed sum of its rows."""

    revision: int
    key: bytes = field(repr=False)
    total: int = field(repr=False)

    def entry(self, name: str, version: int) -> int:
        """Return what one row adds to the sum."""
        row = json.dumps([name, version]).encode()
        return int.from_bytes(hmac.digest(self.key, row, "sha256"))

    def plaintext(self) -> bytes:
        """Return what is sealed: the sum stays secret, so that no other rows can be fitted to it"""
        return self.key + self.total.to_bytes(SUM_BYTES)


@dataclass(slots=True)
class Census:
    """The rows that belong to the head with this mark (its sealed bytes, never the same twice)."""

    mark: bytes
    head: Head
    versions: dict[str, int]


class Sealer:
    """Puts and gets sealed values inside the caller's transaction."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self._census: Census | None = None
        # Our own changes, new mark -> (old mark, head, name, version): a change that was rolled
        # back is never looked up, since its mark is in no database.
        self._steps: dict[bytes, tuple[bytes, Head, str, int | None]] = {}
        self._lock = threading.Lock()

    def put(self, connection: Connection, name: str, plaintext: bytes) -> None:
        """Seal a value under a name, in place of the one that is there.

        Raises:
            SealBroken: the store was changed behind our back.
        """
        if name == HEAD or not 0 < len(name) <= MAX_NAME:
            raise InvalidInput(f"A sealed value's name has 1 to {MAX_NAME} characters.")
        self._change(connection, name, plaintext)

    def get(self, connection: Connection, name: str) -> bytes:
        """Return a value.

        Raises:
            NotFound: there is none of that name.
            SealBroken: it was changed, swapped or put back to an older version.
        """
        # Where a database gives each statement its own view, a write may fall in between: once.
        for _ in range(2):
            expected = self._rows(connection).versions.get(name)
            row = find(connection, name)
            if row is None and expected is None:
                raise NotFound(f"Nothing is sealed under {name}.")
            if row and row.version == expected:
                return open_envelope(self.keyring.key(row.key_id), row)
        raise broken(name, "it is not the version that was last sealed")

    def delete(self, connection: Connection, name: str) -> None:
        """Delete a value; nothing happens where there is none."""
        if self._rows(connection).versions.get(name) is not None:
            self._change(connection, name, None)

    def names(self, connection: Connection, prefix: str) -> list[str]:
        """Return the names that begin with a prefix, in order."""
        return sorted(n for n in self._rows(connection).versions if n.startswith(prefix))

    def revision(self, connection: Connection) -> int:
        """Return how many changes the store has seen."""
        return self._rows(connection).head.revision

    def verify(self, connection: Connection) -> int:
        """Open every value and return how many there are.

        Raises:
            SealBroken: names the first that does not open.
        """
        versions = self._count(connection).versions
        for row in connection.execute(select(*COLUMNS).order_by(sealed_values.c.name)):
            open_envelope(self.keyring.key(row.key_id), envelope(row))
        return len(versions)

    def accept(self, connection: Connection, *, at_least: int = 0) -> int:
        """Take the rows as they are for the truth, after a restore; returns how many.

        Args:
            at_least: revision that the store then has at least, so that no number comes twice.
        """
        rows = connection.execute(select(sealed_values.c.name, sealed_values.c.version)).all()
        newest = max((r.version for r in rows), default=0)
        head = Head(max(newest, at_least) + 1, secrets.token_bytes(32), 0)
        entries = [head.entry(r.name, r.version) for r in rows if r.name != HEAD]
        self._write_head(
            connection,
            self.keyring.current(connection),
            Head(head.revision, head.key, sum(entries) % MODULUS),
        )
        return len(entries)

    def _change(self, connection: Connection, name: str, plaintext: bytes | None) -> None:
        # The head's row is the lock: changes of the store go one after another.
        connection.execute(
            select(sealed_values.c.name).where(sealed_values.c.name == HEAD).with_for_update()
        )
        rows = self._rows(connection)
        head, before = rows.head, rows.versions.get(name)
        version = head.revision + 1
        key = self.keyring.current(connection)
        total = head.total - (head.entry(name, before) if before is not None else 0)
        there = sealed_values.c.name == name
        if plaintext is None:
            done = connection.execute(
                delete(sealed_values).where(there, sealed_values.c.version == before)
            ).rowcount
        else:
            total += head.entry(name, version)
            values = vars_of(seal(key, name, version, plaintext))
            change = (
                insert(sealed_values)
                if before is None
                else update(sealed_values).where(there, sealed_values.c.version == before)
            )
            done = connection.execute(change.values(**values)).rowcount
        if done != 1:
            raise broken(name, "it is not the version that was last sealed")
        after = Head(version, head.key, total % MODULUS)
        mark = self._write_head(connection, key, after)
        with self._lock:
            if len(self._steps) >= REMEMBERED_STEPS:
                self._steps.clear()
            self._steps[mark] = (
                rows.mark,
                after,
                name,
                None if plaintext is None else version,
            )

    def _write_head(self, connection: Connection, key: MasterKey, head: Head) -> bytes:
        row = seal(key, HEAD, head.revision, head.plaintext())
        changed = connection.execute(
            update(sealed_values).where(sealed_values.c.name == HEAD).values(**vars_of(row))
        )
        if not changed.rowcount:
            connection.execute(insert(sealed_values).values(**vars_of(row)))
        return row.sealed

    def _rows(self, connection: Connection) -> Census:
        """Return the rows that belong to the head in the database."""
        mark = connection.scalar(select(sealed_values.c.sealed).where(sealed_values.c.name == HEAD))
        with self._lock:
            census = self._census
            if census and mark and census.mark != mark:
                census = self._walk(census, mark)
            if census and census.mark == mark:
                self._census = census
                return census
        return self._count(connection)

    def _walk(self, census: Census, mark: bytes) -> Census | None:
        """Bring what is known up to a head that we wrote ourselves."""
        steps = []
        at = mark
        while at != census.mark:
            step = self._steps.get(at)
            if step is None:
                return None
            steps.append(step)
            at = step[0]
        versions = dict(census.versions)
        for _, _, name, version in reversed(steps):
            if version is None:
                versions.pop(name, None)
            else:
                versions[name] = version
        return Census(mark, steps[0][1], versions)

    def _count(self, connection: Connection) -> Census:
        """Read all names and versions, in one statement, and compare them with the head."""
        row = sealed_values.c
        at_head = row.name == HEAD
        columns = [
            case((at_head, column), else_=null()).label(column.name) for column in COLUMNS[2:]
        ]
        found = connection.execute(select(row.name, row.version, *columns)).all()
        versions = {r.name: r.version for r in found if r.name != HEAD}
        top = next((r for r in found if r.name == HEAD), None)
        if top is None:
            if versions:
                raise broken("the store", "its head is missing")
            new = Head(0, secrets.token_bytes(32), 0)
            return Census(b"", new, {})
        content = open_envelope(self.keyring.key(top.key_id), envelope(top))
        head = Head(top.version, content[:-SUM_BYTES], int.from_bytes(content[-SUM_BYTES:]))
        total = sum(head.entry(name, version) for name, version in versions.items())
        if total % MODULUS != head.total:
            raise broken("the store", "a value was deleted, added or put back to an older version")
        with self._lock:
            self._census = Census(top.sealed, head, versions)
            return self._census


def seal(key: MasterKey, name: str, version: int, plaintext: bytes) -> Envelope:
    """Encrypt a value under a fresh data key, and that under the master key."""
    data_key = AESGCM.generate_key(DATA_KEY_BITS)
    return Envelope(
        name=name,
        version=version,
        key_id=key.id,
        wrapped=encrypt(key.wrapping, data_key, bound("key", name, version, key.id)),
        sealed=encrypt(data_key, plaintext, bound("value", name, version)),
    )


def open_envelope(key: MasterKey, row: Envelope) -> bytes:
    """Return the value.

    Raises:
        SealBroken: the row is not what was sealed, or the key is another.
    """
    try:
        data_key = unwrap(key, row)
        return decrypt(data_key, row.sealed, bound("value", row.name, row.version))
    except InvalidTag:
        raise broken(row.name, "it was changed, or sealed under another key") from None


def rewrap(old: MasterKey, new: MasterKey, row: Envelope) -> Envelope:
    """Put a value's data key under another master key; the value itself is not touched."""
    try:
        data_key = unwrap(old, row)
    except InvalidTag:
        raise broken(row.name, "it was changed, or sealed under another key") from None
    wrapped = encrypt(new.wrapping, data_key, bound("key", row.name, row.version, new.id))
    return Envelope(row.name, row.version, new.id, wrapped, row.sealed)


def unwrap(key: MasterKey, row: Envelope) -> bytes:
    """Return a row's data key."""
    return decrypt(key.wrapping, row.wrapped, bound("key", row.name, row.version, row.key_id))


def bound(*facts: str | int) -> bytes:
    """Return the associated data that binds a ciphertext to its place."""
    return json.dumps([SCHEME, *facts]).encode()


def encrypt(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Encrypt with AES-GCM under a random nonce, which comes first."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def decrypt(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Undo `encrypt`; raises InvalidTag."""
    if len(sealed) < NONCE_BYTES + 16:
        raise InvalidTag
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)


def find(connection: Connection, name: str) -> Envelope | None:
    """Return a row."""
    row = connection.execute(select(*COLUMNS).where(sealed_values.c.name == name)).first()
    return envelope(row) if row else None


def envelope(row: Any) -> Envelope:
    """Turn a database row into an envelope."""
    return Envelope(row.name, row.version, row.key_id, row.wrapped, row.sealed)


def vars_of(row: Envelope) -> dict[str, Any]:
    """Return an envelope's columns."""
    return {column.name: getattr(row, column.name) for column in sealed_values.columns}


def broken(name: str, why: str) -> SealBroken:
    """Describe a seal that does not hold."""
    return SealBroken(
        f"The seal of {name} is broken: {why}. Nothing was released. Find out who changed the "
        "database and restore it from a backup; if you restored it just now, run "
        "`uait vault accept-restore`."
    )
