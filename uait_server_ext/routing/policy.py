"""Which tiers to try: rules, then limits, then a strategy; and learning from what came of it.

============== ====================================================================================
``cascade``    from the smallest tier that has a chance upwards, each answer verified; where nothing
               can be verified: `difficulty`
``difficulty`` one tier, the stronger the harder the request looks
``learned``    one tier, the cheapest whose quality, drawn from its posterior, is enough
``smallest``   one tier, ``largest`` likewise
============== ====================================================================================

Hard: privacy pins, `dearest`, `max_usd`. They bind every attempt, fallbacks too, and requests that
name a model. Wished: `target_usd`, `target_seconds`; where no tier meets them the answer says so.
Nothing here waits: a plan is a matter of microseconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from uait_server_ext.errors import PermissionDenied, UaitError
from uait_server_ext.inference.models import ChatRequest

from .budget_models import worst_case
from .cascade import cascade, fallbacks, single, start_of, verifier_for
from .difficulty import Difficulty, Look, TaskClass, look
from .models import REACH, Attempt, AttemptRecord, Caller, Decision, Plan, Price, Target, Tier
from .posterior import Posterior
from .rules import PolicySettings, Rule, Strategy, nearest

FLUSH_EVERY = 50
DEVIATIONS_P90 = 1.28
CHARACTERS_PER_TOKEN = 4
ANSWER_TOKENS = 256
FIRST_STEP = 0.5
"""How much of what is left to 1 the next stronger tier's threshold takes."""

log = logging.getLogger("uait.routing")


@dataclass(frozen=True, slots=True)
class LearningPlan(Plan):
    """A plan with what was seen in the request, to learn from."""

    features: tuple[float, ...] = ()
    smallest: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may be given at most.

    Attributes:
        dearest: no tier may be stronger than this, and none dearer.
        usd: no call may cost more.
    """

    dearest: Tier | None = None
    usd: float | None = None

    def allow(self, request: ChatRequest, price: Price, rank: int | None = None) -> bool:
        """Tell whether a call is within the bounds, whatever it comes to."""
        most = worst_case(request, price).usd
        if self.usd is not None and most > self.usd:
            return False
        if self.dearest is None:
            return True
        stronger = rank is not None and rank > self.dearest.rank
        return not stronger and most <= worst_case(request, self.dearest.price).usd


class RoutingPolicy:
    """Chooses tiers by the routing file and by what was learned."""

    def __init__(
        self,
        settings: PolicySettings,
        tiers: Sequence[Tier] = (),
        *,
        posterior: Posterior | None = None,
        difficulty: Difficulty | None = None,
        random: Random | None = None,
    ) -> None:
        self.settings = settings
        self.tiers = {tier.name: tier for tier in tiers}
        self.posterior = posterior or Posterior()
        self.difficulty = difficulty or Difficulty()
        # Not for secrets: it spreads trials over tiers.
        self.random = random or Random()  # noqa: S311
        self._saving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bring what was learned before."""
        await self.posterior.load(self.difficulty)

    async def stop(self) -> None:
        """Keep what was learned."""
        if self._saving:
            await asyncio.wait({self._saving})
        await self.save()

    async def save(self) -> None:
        """Write what was learned; a database that fails is logged, requests go on."""
        try:
            await self.posterior.flush(self.difficulty)
        except (UaitError, OSError) as error:
            log.warning("what routing learned could not be written: %s", error)

    def pinned(self, request: ChatRequest, caller: Caller) -> Caller:
        """Return the caller with how far the words may travel by pins and rules."""
        reaches = list(self.settings.pins.reaches(caller))
        if rules := self.settings.pinning_rules:
            seen = self._look(request, caller)
            score = self.difficulty.score(seen.features)
            reaches += [
                rule.reach
                for rule in rules
                if rule.reach and rule.when.holds(request, caller, seen.task, score)
            ]
        reach = nearest(iter(reaches))
        return caller if reach == caller.reach else replace(caller, reach=reach)

    def permit(self, request: ChatRequest, caller: Caller, target: Target) -> None:
        """Let a request that names a model pass.

        Raises:
            PermissionDenied: the words may not go there, or it is dearer than allowed.
        """
        reach = self.pinned(request, caller).reach
        if REACH[target.privacy] > REACH[reach]:
            where = {"local": "this machine", "private": "the organisation"}[reach]
            raise PermissionDenied(
                f"{target.id} was not asked: these words may not leave {where}. Choose a model "
                "that runs there, or `auto`."
            )
        seen = self._look(request, caller)
        rule = self._rule(request, caller, seen, self.difficulty.score(seen.features))
        bounds = self._bounds(rule)
        ranks = [tier.rank for tier in self.tiers.values() if target in tier.targets]
        if not bounds.allow(request, target.price, min(ranks, default=None)):
            raise PermissionDenied(
                f"{target.id} was not asked: it is dearer than the policy allows. Choose `auto`, "
                "or ask an administrator to raise `dearest` or `max_usd` in the routing file."
            )

    def plan(self, request: ChatRequest, caller: Caller, tiers: Sequence[Tier]) -> Plan:
        """Say what to try.

        Raises:
            PermissionDenied: the policy allows none of these tiers.
        """
        seen = self._look(request, caller)
        score = self.difficulty.score(seen.features)
        rule = self._rule(request, caller, seen, score)
        allowed = self._allowed(request, tiers, self._bounds(rule))
        wished, notes = self._wished(request, seen.task, allowed)
        if rule and rule.use is not None:
            wished = allowed
            if allowed[-1].name != rule.use:
                notes = (f"{rule.use}, which a rule asks for, cannot serve this request",)
        attempts, why = self._choose(request, caller, seen, score, rule, wished)
        late = [tier for tier in allowed if tier not in wished]  # better than no answer at all
        attempts = (*attempts, *fallbacks(late, wished[-1].rank))
        return LearningPlan(
            attempts=attempts,
            why=why,
            task=seen.task,
            baseline=allowed[-1],
            notes=notes,
            features=seen.features,
            smallest=tiers[0].name,
        )

    def observe(self, plan: Plan, decision: Decision) -> None:
        """Learn how good, fast and dear each tier was that answered."""
        if not self.settings.learn:
            return
        for record in decision.tried:
            if record.outcome not in ("answered", "rejected"):
                continue
            good = judged(record)
            self.posterior.observe(
                plan.task, record.tier, good=good, seconds=record.seconds, usd=record.cost_usd
            )
            if good is None or not isinstance(plan, LearningPlan):
                continue
            if record.tier == plan.smallest and plan.features:
                self.difficulty.learn(plan.features, hard=not good)
        if self.posterior.pending >= FLUSH_EVERY and (self._saving is None or self._saving.done()):
            self._saving = asyncio.ensure_future(self.save())

    def _look(self, request: ChatRequest, caller: Caller) -> Look:
        return look(request, grounded=bool(caller.checks and caller.checks.passages))

    def _rule(self, request: ChatRequest, caller: Caller, seen: Look, score: float) -> Rule | None:
        for rule in self.settings.deciding_rules:
            if rule.when.holds(request, caller, seen.task, score):
                return rule
        return None

    def _bounds(self, rule: Rule | None) -> Bounds:
        """Return the nearer of the policy's and the rule's limits: a rule never widens them."""
        names = [self.settings.dearest, *((rule.dearest, rule.use) if rule else ())]
        tiers = [self.tiers[name] for name in names if name in self.tiers]
        usds = [self.settings.max_usd, rule.max_usd if rule else None]
        return Bounds(
            min(tiers, key=lambda tier: tier.rank, default=None),
            min((usd for usd in usds if usd is not None), default=None),
        )

    def _allowed(self, request: ChatRequest, tiers: Sequence[Tier], bounds: Bounds) -> list[Tier]:
        allowed = [tier for tier in tiers if bounds.allow(request, tier.price, tier.rank)]
        if not allowed:
            raise PermissionDenied(
                "No model was asked: the policy allows none that can do this. Ask for less "
                "(`max_tokens`, a shorter prompt), or ask an administrator to raise `dearest` or "
                "`max_usd` in the routing file."
            )
        return allowed

    def _wished(
        self, request: ChatRequest, task: TaskClass, tiers: list[Tier]
    ) -> tuple[list[Tier], tuple[str, ...]]:
        """Return the tiers that are expected to meet the targets; all of them where none is."""
        usd, seconds = self.settings.target_usd, self.settings.target_seconds
        found, notes = tiers, []
        if usd is not None:
            cheap = [tier for tier in found if likely_usd(request, tier.price) <= usd]
            if not cheap:
                notes.append(f"no model is expected to cost less than ${usd:g}")
            found = cheap or found[:1]
        if seconds is not None:
            fast = [tier for tier in found if self._seconds(task, tier) <= seconds]
            if not fast:
                notes.append(f"no model is expected to answer within {seconds:g} s")
            found = fast or [min(found, key=lambda tier: self._seconds(task, tier))]
        return found, tuple(notes)

    def _seconds(self, task: TaskClass, tier: Tier) -> float:
        """Return what nine in ten answers take at most, 0 where nobody knows yet."""
        return self.posterior.belief(task, tier.name).seconds_at(DEVIATIONS_P90) or 0.0

    def _choose(
        self,
        request: ChatRequest,
        caller: Caller,
        seen: Look,
        score: float,
        rule: Rule | None,
        tiers: list[Tier],
    ) -> tuple[tuple[Attempt, ...], str]:
        settings = self.settings
        name = f"rule {rule.name or settings.rules.index(rule) + 1}: " if rule else ""
        if rule and rule.use is not None:
            why = f"{name}use {rule.use}"
            return single(tiers, len(tiers) - 1, why), why
        strategy: Strategy = (rule.strategy if rule else None) or settings.strategy
        if strategy == "cascade" and len(tiers) > 1:
            verifiers = {
                tier.name: verifier_for(request, seen.task, caller.checks, settings, tier)
                for tier in tiers[:-1]
            }
            if any(verifiers.values()):
                start = start_of(
                    tiers,
                    lambda tier: self.posterior.belief(seen.task, tier.name).draw(self.random),
                    least=settings.least_accepted,
                    difficulty=score,
                    skip=settings.skip,
                )
                why = f"{name}cascade from {tiers[start].name}: {seen.task}, difficulty {score:.2f}"
                return cascade(tiers, start, why, lambda tier: verifiers.get(tier.name)), why
            strategy = "difficulty"
        if strategy == "learned":
            chosen = self._cheapest_good(seen.task, tiers)
            why = f"{name}cheapest that is good enough at {seen.task}, by what was learned"
        elif strategy == "difficulty":
            chosen = by_difficulty(score, settings.threshold, len(tiers))
            why = f"{name}{seen.task} of difficulty {score:.2f}"
        elif strategy == "largest":
            chosen, why = len(tiers) - 1, f"{name}the largest"
        else:
            chosen, why = 0, f"{name}the smallest"
        return single(tiers, chosen, why), why

    def _cheapest_good(self, task: TaskClass, tiers: list[Tier]) -> int:
        """Return the cheapest tier whose drawn quality is enough, else the best drawn."""
        draws = [self.posterior.belief(task, tier.name).draw(self.random) for tier in tiers]
        good = [index for index, draw in enumerate(draws) if draw >= self.settings.quality]
        return good[0] if good else draws.index(max(draws))


def by_difficulty(score: float, threshold: float, tiers: int) -> int:
    """Return the tier for a difficulty: each stronger one begins half-way to 1 from the last."""
    chosen = 0
    while chosen < tiers - 1 and score >= threshold:
        chosen += 1
        threshold += (1 - threshold) * FIRST_STEP
    return chosen


def judged(record: AttemptRecord) -> bool | None:
    """Return whether a verifier accepted an answer, none where none judged it."""
    if record.outcome == "rejected":
        return False
    return None if record.score is None else True


def likely_usd(request: ChatRequest, price: Price) -> float:
    """Estimate what a call will cost."""
    prompt = sum(len(message.content) for message in request.messages) / CHARACTERS_PER_TOKEN
    answer = min(request.max_tokens, ANSWER_TOKENS)
    return (prompt * price.input + answer * price.output) / 1e6
