"""Tables of what is sealed under the master key; `sealing.py` and `master_key.py` use them."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, String, Table

from .database import metadata

sealed_values = Table(
    "sealed_values",
    metadata,
    Column("name", String(200), primary_key=True),  # "totp:<id>", "secret:<id>:<version>", "head"
    Column("version", Integer, nullable=False),  # the store's revision at which it was put
    Column("key_id", String(32), nullable=False),  # the master key that wraps the data key
    Column("wrapped", LargeBinary, nullable=False),  # nonce + wrapped data key
    Column("sealed", LargeBinary, nullable=False),  # nonce + value under the data key
)
Index("ix_sealed_values_key_id", sealed_values.c.key_id)

master_keys = Table(  # which master key is in force; never the key itself
    "master_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("state", String(16), nullable=False),  # current | retiring | retired
    Column("since", Float, nullable=False),
)
