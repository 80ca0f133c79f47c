"""Tables of the vault: what secrets there are; their values are sealed (`storage/sealing.py`)."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
)

from uait_server_ext.storage.database import metadata

secrets = Table(
    "secrets",
    metadata,
    # Also sealed as `secret:<id>`, so that an owner changed in the database is noticed.
    Column("id", String(40), primary_key=True),
    Column("owner", String(40), nullable=False),  # a user's id, or "*": shared
    Column("name", String(100), nullable=False),
    Column("description", String(200), nullable=False),
    Column("reference", String(500)),  # in another vault; none: the value is sealed here
    Column("current", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("owner", "name"),
)

secret_versions = Table(  # the value of each is sealed as `secret:<id>:<version>`
    "secret_versions",
    metadata,
    Column("secret_id", ForeignKey("secrets.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(40), nullable=False),
    Column("destroyed_at", Float),
)

leases = Table(
    "leases",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("secret_id", ForeignKey("secrets.id", ondelete="CASCADE"), nullable=False),
    Column("principal", String(40), nullable=False),
    Column("purpose", String(200), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("uses", Integer, nullable=False),
    Column("max_uses", Integer),
)
Index("ix_leases_secret", leases.c.secret_id)
Index("ix_leases_principal", leases.c.principal)
