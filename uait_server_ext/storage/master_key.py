"""The master key: the one secret that is not in the database and opens all that is sealed there.

A source keeps a few bytes (the ring of keys: one, or two during a rotation) somewhere else than
the database; `key_sources.py` has the sources. The database says which key is in force, so that
every process agrees. A key is never made anew while values are sealed under a lost one.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, select

from uait_server_ext.errors import Unavailable

from .database import Database
from .ids import Clock, now
from .tables import master_keys, sealed_values

KEY_BYTES = 32
ID_BYTES = 8

CURRENT, RETIRING, RETIRED = "current", "retiring", "retired"


class KeySource(Protocol):
    """Keeps the ring's bytes; blocks."""

    @property
    def description(self) -> str:
        """Where the key is, for messages."""

    def load(self) -> bytes | None:
        """Return what was saved, none where nothing was. Raise Unavailable where it is closed."""

    def save(self, content: bytes) -> None:
        """Replace the content so that a crash leaves the old or the new."""


@dataclass(frozen=True)
class MasterKey:
    """256 random bits; used only through keys derived from it."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> MasterKey:
        """Make a fresh key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @cached_property
    def id(self) -> str:
        """Return the key's name, which tells nothing about it."""
        return self.derive("id", ID_BYTES).hex()

    @cached_property
    def wrapping(self) -> bytes:
        """Return the key that encrypts data keys."""
        return self.derive("wrap")

    def derive(self, purpose: str, length: int = KEY_BYTES) -> bytes:
        """Return a key for one purpose (HKDF-SHA256, RFC 5869)."""
        return HKDF(SHA256(), length, salt=None, info=f"uait {purpose}".encode()).derive(
            self.secret
        )


class Keyring:
    """The master keys at hand; asks its source again when the database names an unknown one."""

    def __init__(self, source: KeySource) -> None:
        self.source = source
        self._keys: dict[str, MasterKey] = {}
        self._lock = threading.Lock()

    def key(self, key_id: str) -> MasterKey:
        """Return a key by its id.

        Raises:
            Unavailable: the source has no such key.
        """
        with self._lock:
            if key_id not in self._keys:
                self._load()
            found = self._keys.get(key_id)
        if found is None:
            raise missing(key_id, self.source)
        return found

    def current(self, connection: Connection) -> MasterKey:
        """Return the key in force, under which new values are sealed."""
        key_id = current_id(connection)
        if key_id is None:
            raise Unavailable("No master key is set up for this database: open the keyring first.")
        return self.key(key_id)

    def ids(self) -> list[str]:
        """Return the ids of the keys that the source has now."""
        with self._lock:
            self._load()
            return list(self._keys)

    def add(self, key: MasterKey) -> None:
        """Keep one more key, durably, before anything is sealed under it."""
        with self._lock:
            self._load()
            self._keys[key.id] = key
            self._save()

    def drop(self, key_ids: set[str]) -> None:
        """Forget keys under which nothing is sealed any more."""
        with self._lock:
            self._load()
            if key_ids & self._keys.keys():
                self._keys = {i: key for i, key in self._keys.items() if i not in key_ids}
                self._save()

    def _load(self) -> None:
        content = self.source.load()
        self._keys = {key.id: key for key in parse(content)} if content else {}

    def _save(self) -> None:
        keys = [base64.b64encode(key.secret).decode() for key in self._keys.values()]
        self.source.save(json.dumps({"uait-master-keys": 1, "keys": keys}).encode())


def open_keyring(database: Database, source: KeySource, *, clock: Clock = now) -> Keyring:
    """Return the keyring of a database; make the first key where nothing is sealed yet. Blocks.

    Raises:
        Unavailable: values are sealed under a key that the source does not have. None is made.
    """
    keyring = Keyring(source)

    def agree(connection: Connection) -> None:
        at_hand = keyring.ids()
        used = connection.scalars(select(sealed_values.c.key_id).distinct()).all()
        current = current_id(connection)
        for needed in (*([current] if current else []), *used):
            if needed not in at_hand:
                raise missing(needed, source)
        if current is None:
            if not at_hand:
                keyring.add(MasterKey.generate())
                at_hand = keyring.ids()
            connection.execute(
                master_keys.insert().values(id=at_hand[0], state=CURRENT, since=clock())
            )

    database.write_now(agree)
    return keyring


def current_id(connection: Connection) -> str | None:
    """Return the id of the master key in force, none in a new database."""
    return connection.scalar(select(master_keys.c.id).where(master_keys.c.state == CURRENT))


def parse(content: bytes) -> list[MasterKey]:
    """Read the ring's bytes.

    Raises:
        Unavailable: they are not a ring.
    """
    try:
        keys = [base64.b64decode(key, validate=True) for key in json.loads(content)["keys"]]
        if any(len(key) != KEY_BYTES for key in keys):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Unavailable(
            "The master key's file is damaged. Restore it from where you keep its copy."
        ) from None
    return [MasterKey(key) for key in keys]


def missing(key_id: str, source: KeySource) -> Unavailable:
    """Describe a key that should be there."""
    return Unavailable(
        f"The master key {key_id} is not in {source.description}, and secrets are sealed under it. "
        "Restore the key (it is not in a copy of the database) or name its place with "
        "`UaitApp.master_key`. UAIT makes no new one: that would lose the secrets."
    )
