"""What is known of each tier at each class of task: how good, how fast, how dear.

Quality is a discounted Beta posterior, sampled to choose (Thompson sampling): V. Raj and S.
Kalyani, "Taming Non-stationary Bandits: A Bayesian Approach", 2017 (arXiv:1707.09727). With every
observation of a class of task all its tiers forget a little, so that at most `1 / (1 - DISCOUNT)`
observations count and a tier that has not been tried for long is tried again. Time to answer is
log-normal, cost a mean; both forget the same way.

The database is the truth and is shared by all processes; memory holds a copy and what is not
written yet. `observe` and `belief` take microseconds and touch no file; `flush` writes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from uait_server_ext.storage.ids import Clock, now

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from uait_server_ext.storage.database import Database

    from .difficulty import Difficulty

DISCOUNT = 0.99
PRIOR = (3.0, 1.0)
"""Good and bad answers of a tier before any was seen: it is trusted, and soon no more."""

HALF_LIFE_SECONDS = 30 * 86_400.0
"""How long it takes until what nobody observes any more counts half."""

MAX_PENDING = 10_000
MAX_ROWS = 1000
POSTGRES_LOCK = 0x75697074  # "uipt"
DIFFICULTY = "smallest-tier"


@dataclass(frozen=True, slots=True)
class Belief:
    """Discounted sums of what was observed, with the prior's pseudo-observations in `prior`.

    Attributes:
        good, bad: answers that were accepted, and rejected.
        timed: answers whose time and cost are in the sums.
        prior: (good, bad) before anything was observed.
    """

    good: float = 0.0
    bad: float = 0.0
    timed: float = 0.0
    log_seconds: float = 0.0
    log_seconds_squared: float = 0.0
    usd: float = 0.0
    updated_at: float = 0.0
    prior: tuple[float, float] = PRIOR

    @property
    def quality(self) -> float:
        """The expected share of answers that are good."""
        good, bad = self.good + self.prior[0], self.bad + self.prior[1]
        return good / (good + bad)

    def draw(self, random: Random) -> float:
        """Sample the share of good answers from the posterior."""
        return random.betavariate(self.good + self.prior[0], self.bad + self.prior[1])

    @property
    def seconds(self) -> float | None:
        """The expected time of an answer (median), none where too few were seen."""
        return math.exp(self.log_seconds / self.timed) if self.timed >= 1 else None

    def seconds_at(self, deviations: float) -> float | None:
        """Return the time that is so many standard deviations above the median: 1.28 for p90."""
        if self.timed < 1:
            return None
        mean = self.log_seconds / self.timed
        variance = max(0.0, self.log_seconds_squared / self.timed - mean * mean)
        return math.exp(mean + deviations * math.sqrt(variance))

    @property
    def usd_per_answer(self) -> float | None:
        """The mean cost of an answer, none where none was seen."""
        return self.usd / self.timed if self.timed >= 1 else None

    def faded(self, factor: float) -> Belief:
        """Return the same, remembered less."""
        return replace(
            self,
            good=self.good * factor,
            bad=self.bad * factor,
            timed=self.timed * factor,
            log_seconds=self.log_seconds * factor,
            log_seconds_squared=self.log_seconds_squared * factor,
            usd=self.usd * factor,
        )


class Observation(NamedTuple):
    """What one attempt showed; none: that was not seen."""

    task: str
    tier: str
    good: bool | None
    seconds: float | None
    usd: float
    at: float


class Posterior:
    """Beliefs by (class of task, tier)."""

    def __init__(
        self,
        database: Database | None = None,
        clock: Clock = now,
        *,
        discount: float = DISCOUNT,
        half_life_seconds: float = HALF_LIFE_SECONDS,
        priors: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Begin with nothing observed; `load` brings what the database knows.

        Args:
            priors: of a tier: how many good and bad answers it is taken to have given before.
        """
        self.database = database
        self.clock = clock
        self.discount = discount
        self.half_life_seconds = half_life_seconds
        self.priors = dict(priors or {})
        self._beliefs: dict[tuple[str, str], Belief] = {}
        self._pending: list[Observation] = []
        self._writing = asyncio.Lock()

    def belief(self, task: str, tier: str) -> Belief:
        """Return what is believed now."""
        prior = self.priors.get(tier, PRIOR)
        found = self._beliefs.get((task, tier))
        if found is None:
            return Belief(prior=prior)
        idle = max(0.0, self.clock() - found.updated_at)
        return replace(found.faded(0.5 ** (idle / self.half_life_seconds)), prior=prior)

    def observe(
        self,
        task: str,
        tier: str,
        *,
        good: bool | None = None,
        seconds: float | None = None,
        usd: float = 0.0,
    ) -> None:
        """Learn from one attempt: whether its answer was good, how long it took, what it cost."""
        seen = Observation(task, tier, good, seconds, usd, self.clock())
        apply(self._beliefs, seen, self.discount, self.half_life_seconds)
        if self.database and len(self._pending) < MAX_PENDING:
            self._pending.append(seen)

    @property
    def pending(self) -> int:
        """How many observations `flush` has to write."""
        return len(self._pending)

    async def load(self, difficulty: Difficulty | None = None) -> None:
        """Read what the database knows."""
        if self.database:
            self._beliefs, state = await self.database.read(read)
            if difficulty and state:
                difficulty.load(state)

    async def flush(self, difficulty: Difficulty | None = None) -> None:
        """Write what was observed onto what other processes wrote meanwhile; take that over."""
        if self.database is None:
            return
        async with self._writing:
            pending, self._pending = self._pending, []

            def work(connection: Connection) -> dict[tuple[str, str], Belief]:
                return write(connection, pending, self.discount, self.half_life_seconds, difficulty)

            try:
                beliefs = await self.database.write(work)
            except BaseException:
                self._pending = (pending + self._pending)[:MAX_PENDING]
                raise
            for seen in self._pending:  # what came while we wrote
                apply(beliefs, seen, self.discount, self.half_life_seconds)
            self._beliefs = beliefs


def apply(
    beliefs: dict[tuple[str, str], Belief],
    seen: Observation,
    discount: float,
    half_life_seconds: float,
) -> None:
    """Let every tier of the class forget a little, then add what was seen of one."""
    for key, belief in beliefs.items():
        if key[0] == seen.task:
            idle = max(0.0, seen.at - belief.updated_at)
            factor = discount * 0.5 ** (idle / half_life_seconds)
            beliefs[key] = replace(belief.faded(factor), updated_at=seen.at)
    old = beliefs.get((seen.task, seen.tier), Belief())
    timed = seen.seconds is not None
    log_seconds = math.log(max(1e-3, seen.seconds)) if seen.seconds is not None else 0.0
    beliefs[seen.task, seen.tier] = replace(
        old,
        good=old.good + (seen.good is True),
        bad=old.bad + (seen.good is False),
        timed=old.timed + timed,
        log_seconds=old.log_seconds + log_seconds,
        log_seconds_squared=old.log_seconds_squared + log_seconds**2,
        usd=old.usd + seen.usd * timed,
        updated_at=seen.at,
    )


def read(connection: Connection) -> tuple[dict[tuple[str, str], Belief], bytes | None]:
    """Return all beliefs and the learned difficulty."""
    from sqlalchemy import select

    from .tables import difficulty_models, tier_posteriors

    rows = connection.execute(select(tier_posteriors)).mappings()
    beliefs = {
        (row["task"], row["tier"]): Belief(
            **{name: value for name, value in row.items() if name not in ("task", "tier")}
        )
        for row in rows
    }
    model = difficulty_models.c
    state = connection.scalar(select(model.state).where(model.name == DIFFICULTY))
    return beliefs, state


def write(
    connection: Connection,
    pending: list[Observation],
    discount: float,
    half_life_seconds: float,
    difficulty: Difficulty | None,
) -> dict[tuple[str, str], Belief]:
    """Add observations to what the database knows; return that."""
    from sqlalchemy import delete, func, insert, select

    from .tables import difficulty_models, tier_posteriors

    if connection.dialect.name == "postgresql":  # SQLite has one writer anyway
        connection.execute(select(func.pg_advisory_xact_lock(POSTGRES_LOCK)))
    beliefs, _ = read(connection)
    for seen in pending:
        apply(beliefs, seen, discount, half_life_seconds)
    latest = sorted(beliefs, key=lambda key: beliefs[key].updated_at, reverse=True)
    beliefs = {key: beliefs[key] for key in latest[:MAX_ROWS]}
    connection.execute(delete(tier_posteriors))
    if beliefs:
        columns = ("good", "bad", "timed", "log_seconds", "log_seconds_squared", "usd")
        connection.execute(
            insert(tier_posteriors),
            [
                {
                    "task": task,
                    "tier": tier,
                    **{name: getattr(belief, name) for name in columns},
                    "updated_at": belief.updated_at,
                }
                for (task, tier), belief in beliefs.items()
            ],
        )
    if difficulty:
        connection.execute(delete(difficulty_models).where(difficulty_models.c.name == DIFFICULTY))
        connection.execute(
            insert(difficulty_models).values(
                name=DIFFICULTY, state=difficulty.dump(), updated_at=latest_of(beliefs)
            )
        )
    return beliefs


def latest_of(beliefs: Mapping[tuple[str, str], Belief]) -> float:
    """Return when anything was last observed, 0 where nothing was."""
    return max((belief.updated_at for belief in beliefs.values()), default=0.0)
