"""The cascade: try a small tier, verify its answer, ask a stronger one where that does not hold.

::

    tier 0 ─ answer ─ verify ─ accepted ──► given
                         └ rejected ► tier 1 ─ answer ─ verify ─ … ► the last tier: given, streamed

What can be verified decides whether there is a cascade at all: without a verifier that has its
material, nothing tells a right answer from a wrong one, and the policy chooses one tier instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uait_server_ext.inference.models import ChatRequest

from .difficulty import TaskClass
from .models import Attempt, Tier, Verifier
from .rules import PolicySettings
from .verify import (
    AllOf,
    Checks,
    Citations,
    LogprobMargin,
    SchemaVerifier,
    SelfAgreement,
    TestsVerifier,
)

NO_CHECKS = Checks()


def verifier_for(
    request: ChatRequest,
    task: TaskClass,
    checks: Checks | None,
    settings: PolicySettings,
    tier: Tier,
) -> Verifier | None:
    """Return what can verify this request's answers from a tier, cheapest first; none: nothing."""
    checks = checks or NO_CHECKS
    wanted = settings.verifiers
    chosen: list[Verifier] = []
    if "schema" in wanted and task in ("extract", "tools"):
        chosen.append(SchemaVerifier())
    if "logprob" in wanted and all("logprobs" in t.capabilities for t in tier.targets):
        chosen.append(LogprobMargin(settings.logprob.least, settings.logprob.margin))
    if "citations" in wanted and checks.passages:
        chosen.append(Citations(checks.passages, settings.citation_share))
    if "tests" in wanted and checks.tests is not None and checks.runner is not None:
        chosen.append(TestsVerifier(checks.runner, checks.tests))
    chosen += checks.verifiers
    if "agreement" in wanted and task in settings.agreement.tasks:
        agreement = settings.agreement
        chosen.append(SelfAgreement(agreement.samples, agreement.share, agreement.temperature))
    if not chosen:
        return None
    return chosen[0] if len(chosen) == 1 else AllOf(tuple(chosen))


def cascade(
    tiers: Sequence[Tier], start: int, why: str, verifier: Callable[[Tier], Verifier | None]
) -> tuple[Attempt, ...]:
    """Return the attempts from a tier upwards, each verified but the last, then the weaker ones.

    The weaker ones are fallbacks: asked where all the others fail, never where one is rejected.
    """
    attempts: list[Attempt] = []
    for tier in tiers[start:]:
        last = tier is tiers[-1]
        attempts.append(
            Attempt(
                tier=tier,
                why="the answer before it was not accepted" if attempts else why,
                role="escalation" if attempts else "first",
                verifier=None if last else verifier(tier),
            )
        )
        if attempts[-1].verifier is None and not last:
            break  # nothing could reject its answer, so that nobody would ask the next
    tried = {attempt.tier.name for attempt in attempts}
    others = [tier for tier in tiers if tier.name not in tried]
    return (*attempts, *fallbacks(others, tiers[start].rank))


def single(tiers: Sequence[Tier], chosen: int, why: str) -> tuple[Attempt, ...]:
    """Return the attempt at one tier, with the others to fall back on."""
    others = [tier for index, tier in enumerate(tiers) if index != chosen]
    return (Attempt(tiers[chosen], why), *fallbacks(others, tiers[chosen].rank))


def fallbacks(tiers: Sequence[Tier], rank: int) -> list[Attempt]:
    """Return the other tiers for when those that were wanted fail: nearest in strength first."""
    ordered = sorted(tiers, key=lambda tier: (abs(tier.rank - rank), -tier.rank))
    return [Attempt(tier, "the tiers before it failed", "fallback") for tier in ordered]


def start_of(
    tiers: Sequence[Tier],
    accepted: Callable[[Tier], float],
    least: float,
    difficulty: float,
    skip: float,
) -> int:
    """Return where a cascade begins: at the smallest tier that has a chance.

    Args:
        accepted: a draw of the share of a tier's answers that are accepted.
        least: a tier of which less is accepted is left out.
        skip: at this difficulty the smallest tier is left out.
    """
    last = len(tiers) - 1
    first = 1 if difficulty >= skip and last else 0
    for index in range(first, last):
        if accepted(tiers[index]) >= least:
            return index
    return last
