"""Tables of routing: budgets, what is used of them, what is set aside; what was learned of tiers.

Amounts are whole numbers: calls, tokens, millionths of a US dollar, milliseconds.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from uait_server_ext.storage.database import metadata

UNITS = ("calls", "tokens", "micro_usd", "milliseconds")

budgets = Table(
    "budgets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(16), nullable=False),  # all | principal | notebook | run
    Column("subject", String(300), nullable=False),  # whose; "*": each of that kind its own
    Column("period", String(8), nullable=False),  # day | month | total
    *(Column(f"limit_{unit}", BigInteger) for unit in UNITS),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("kind", "subject", "period"),
)

budget_use = Table(
    "budget_use",
    metadata,
    Column("budget_id", String(40), ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True),
    Column("subject", String(300), primary_key=True),
    Column("period_start", BigInteger, primary_key=True),  # seconds since the epoch; 0: for ever
    *(Column(f"used_{unit}", BigInteger, nullable=False) for unit in UNITS),
    *(Column(f"held_{unit}", BigInteger, nullable=False) for unit in UNITS),
    Column("updated_at", Float, nullable=False),
)
Index("ix_budget_use_updated_at", budget_use.c.updated_at)

budget_reservations = Table(  # what calls under way have set aside
    "budget_reservations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("budget_id", String(40), ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True),
    Column("subject", String(300), nullable=False),
    Column("period_start", BigInteger, nullable=False),
    *(Column(unit, BigInteger, nullable=False) for unit in UNITS),
    Column("expires_at", Float, nullable=False),  # then its holder has died
)
Index("ix_budget_reservations_expires_at", budget_reservations.c.expires_at)

tier_posteriors = Table(  # discounted sums of what was observed of a tier at a class of task
    "tier_posteriors",
    metadata,
    Column("task", String(40), primary_key=True),
    Column("tier", String(100), primary_key=True),
    Column("good", Float, nullable=False),
    Column("bad", Float, nullable=False),
    Column("timed", Float, nullable=False),
    Column("log_seconds", Float, nullable=False),
    Column("log_seconds_squared", Float, nullable=False),
    Column("usd", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

difficulty_models = Table(  # the learned estimate of difficulty, one row a model
    "difficulty_models",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("state", LargeBinary, nullable=False),
    Column("updated_at", Float, nullable=False),
)
