"""Tables of tuning jobs. Times are seconds since the epoch (UTC)."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, String, Table, Text

from uait_server_ext.storage.database import metadata

tuning_jobs = Table(
    "tuning_jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("owner", String(120), nullable=False),
    Column("name", String(40), nullable=False),
    Column("model", String(200), nullable=False),
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("settings", Text, nullable=False),  # JSON
    Column("data", Text, nullable=False),  # JSON
    Column("step", Integer, nullable=False),
    Column("best_step", Integer),
    Column("best_loss", Float),
    Column("before", Text),  # JSON
    Column("after", Text),  # JSON
    Column("adapter", String(250)),
    # Interruptions since the last checkpoint: a job that gets no further must not start for ever.
    Column("interruptions", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Index("ix_tuning_jobs_owner", "owner", "created_at"),
)

tuning_events = Table(
    "tuning_events",
    metadata,
    Column("job", String(40), ForeignKey("tuning_jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("event", Text, nullable=False),  # JSON
)
