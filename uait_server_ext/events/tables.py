"""The audit log's table: only ever appended to, each row chained to the one before."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table, Text

import uait_server_ext.storage.tables  # noqa: F401 - the chain's key is sealed there
from uait_server_ext.storage.database import metadata

audit_events = Table(
    "audit_events",
    metadata,
    # Given by the log, without gaps; SQLite must not number a row by itself.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("action", String(64), nullable=False),
    Column("outcome", String(8), nullable=False),  # ok | refused | failed
    Column("principal", String(120)),
    Column("kind", String(16)),
    Column("address", String(64)),
    Column("target", String(200)),
    Column("detail", Text, nullable=False),  # canonical JSON
    Column("seal_revision", Integer, nullable=False),  # of the sealed values, at this moment
    Column("chain", String(64), nullable=False),  # HMAC-SHA256 over all of this and the last chain
)
Index("ix_audit_events_action", audit_events.c.action, audit_events.c.sequence)
Index("ix_audit_events_principal", audit_events.c.principal, audit_events.c.sequence)
Index("ix_audit_events_target", audit_events.c.target, audit_events.c.sequence)
