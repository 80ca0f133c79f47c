"""The policy: what it may never do, what it wishes, and what it learns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.routing.tiers import LARGE, MIDDLE, SMALL, TIERS, request
from uait_server_ext.errors import InvalidInput, PermissionDenied
from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.routing.budget_models import worst_case
from uait_server_ext.routing.difficulty import Difficulty
from uait_server_ext.routing.models import (
    REACH,
    AttemptRecord,
    Caller,
    Decision,
    Plan,
    Tier,
    needs_of,
)
from uait_server_ext.routing.policy import RoutingPolicy, by_difficulty
from uait_server_ext.routing.posterior import Posterior
from uait_server_ext.routing.rules import read_policy
from uait_server_ext.storage.database import Database, sqlite_url

ADA = Caller("usr_ada", notebook="payroll/june.ipynb", run="run_1", collection="contracts")
EASY = "What is the capital of France?"
HARD = (
    "A farm has 120 hens. Each hen lays 5 eggs per week and 12 % of the eggs break. The rest is "
    "sold at $0.25 each, and every third week 40 hens less lay twice as many eggs. After 9 weeks, "
    "how much is left if feed costs $31.50 per day? Then explain why the profit decreases."
)


def policy(posterior: Posterior | None = None, seed: int = 1, **entries: Any) -> RoutingPolicy:
    names = [tier.name for tier in TIERS]
    found = read_policy(entries, names)
    return RoutingPolicy(found, TIERS, posterior=posterior, random=Random(seed))


def served(chosen: RoutingPolicy, asked: ChatRequest, caller: Caller) -> tuple[Caller, list[Tier]]:
    """Do what the router does before it asks for a plan."""
    caller = chosen.pinned(asked, caller)
    return caller, [tier for tier in TIERS if tier.serving(needs_of(asked), caller.reach)]


def planned(chosen: RoutingPolicy, asked: ChatRequest, caller: Caller = ADA) -> Plan:
    caller, tiers = served(chosen, asked, caller)
    return chosen.plan(asked, caller, tiers)


def names(plan: Plan) -> list[str]:
    return [attempt.tier.name for attempt in plan.attempts]


# What it may never do.

REACHES = st.sampled_from(["local", "private", "public"])
PATTERNS = st.sampled_from(["*", "usr_*", "payroll/*", "run_1", "contracts", "other"])
PINS = st.fixed_dictionaries(
    {},
    optional={
        "everything": REACHES,
        "principals": st.dictionaries(PATTERNS, REACHES, max_size=2),
        "notebooks": st.dictionaries(PATTERNS, REACHES, max_size=2),
        "runs": st.dictionaries(PATTERNS, REACHES, max_size=2),
        "collections": st.dictionaries(PATTERNS, REACHES, max_size=2),
    },
)
TIER_NAMES = st.sampled_from(["small", "middle", "large"])
STRATEGIES = st.sampled_from(["cascade", "difficulty", "learned", "smallest", "largest"])
USD = st.one_of(st.none(), st.floats(0, 0.02))
RULE = st.fixed_dictionaries(
    {"reach": REACHES},
    optional={
        "use": TIER_NAMES,
        "strategy": STRATEGIES,
        "dearest": TIER_NAMES,
        "max_usd": USD,
        "when": st.sampled_from(
            [{}, {"task": ["math"]}, {"words": ["apples"]}, {"min_difficulty": 0.5}]
        ),
    },
)
POLICY = st.fixed_dictionaries(
    {"strategy": STRATEGIES, "pins": PINS, "rules": st.lists(RULE, max_size=3)},
    optional={
        "dearest": TIER_NAMES,
        "max_usd": USD,
        "target_usd": st.floats(0, 0.01),
        "target_seconds": st.floats(0.1, 100),
        "threshold": st.floats(0, 1),
    },
)
OBSERVED = st.lists(
    st.tuples(st.sampled_from(["math", "chat"]), TIER_NAMES, st.booleans(), st.floats(0.01, 100)),
    max_size=10,
)


@settings(max_examples=300, deadline=None)
@given(
    entries=POLICY,
    reach=REACHES,
    text=st.sampled_from([EASY, HARD, request().messages[0].content]),
    max_tokens=st.integers(1, 1000),
    observed=OBSERVED,
)
def test_no_pin_and_no_limit_is_ever_broken(
    entries: dict[str, Any],
    reach: Any,
    text: str,
    max_tokens: int,
    observed: Sequence[tuple[str, str, bool, float]],
) -> None:
    """Neither by the first attempt nor by a fallback nor by a request that names a model."""
    posterior = Posterior(clock=lambda: 0.0)
    for task, name, good, seconds in observed:
        posterior.observe(task, name, good=good, seconds=seconds)
    chosen = policy(posterior, **entries)
    asked = request(text, max_tokens=max_tokens)
    caller = Caller("usr_ada", "payroll/june.ipynb", "run_1", reach, "contracts")
    pins = entries["pins"]
    bounds = [reach, pins.get("everything", "public")]
    for kind, name in (
        ("principals", "usr_ada"),
        ("notebooks", "payroll/june.ipynb"),
        ("runs", "run_1"),
        ("collections", "contracts"),
    ):
        hits = ("*", name, f"{name.partition('_')[0]}_*", f"{name.partition('/')[0]}/*")
        bounds += [bound for key, bound in pins.get(kind, {}).items() if key in hits]
    bounds += [rule["reach"] for rule in entries["rules"] if not rule.get("when")]
    farthest = min(REACH[bound] for bound in bounds)
    pinned, tiers = served(chosen, asked, caller)
    assert REACH[pinned.reach] <= farthest
    allowed = set()
    try:
        plan = chosen.plan(asked, pinned, tiers)
    except PermissionDenied:
        plan = None
    for attempt in plan.attempts if plan else ():
        assert REACH[attempt.tier.targets[0].privacy] <= farthest
        if "dearest" in entries:
            assert attempt.tier.rank <= names_rank(entries["dearest"])
        if entries.get("max_usd") is not None:
            assert worst_case(asked, attempt.tier.price).usd <= entries["max_usd"]
        allowed.add(attempt.tier.name)
    if plan:
        assert len(names(plan)) == len(set(names(plan))), "no tier is tried twice"
        assert plan.attempts[0].role == "first"
    for tier in TIERS:
        try:
            chosen.permit(asked, caller, tier.targets[0])
        except PermissionDenied:
            assert tier.name not in allowed
        else:
            assert tier.name in allowed, "who names a model gets no more than who does not"


def names_rank(name: str) -> int:
    return next(tier.rank for tier in TIERS if tier.name == name)


def test_a_fallback_of_a_rule_is_never_dearer_than_its_tier() -> None:
    rules = [{"when": {"task": ["math"]}, "use": "middle"}]
    assert names(planned(policy(rules=rules), request())) == ["middle", "small"]


@pytest.mark.parametrize(
    "pins",
    [
        {"everything": "local"},
        {"principals": {"usr_ada": "local"}},
        {"notebooks": {"payroll/*": "local"}},
        {"runs": {"run_*": "local"}},
        {"collections": {"contracts": "local"}},
    ],
)
def test_pinned_words_stay_here_and_who_names_another_model_is_told(pins: dict[str, Any]) -> None:
    chosen = policy(strategy="largest", pins=pins)
    assert names(planned(chosen, request())) == ["small"]
    chosen.permit(request(), ADA, SMALL.targets[0])
    with pytest.raises(PermissionDenied, match="may not leave this machine"):
        chosen.permit(request(), ADA, MIDDLE.targets[0])


def test_a_request_may_pin_itself_but_not_free_itself() -> None:
    here = Caller("usr_ada", reach="local")
    assert names(planned(policy(), request(), here)) == ["small"]
    free = Caller("usr_ada", reach="public")
    chosen = policy(strategy="largest", pins={"everything": "private"})
    assert names(planned(chosen, request(), free))[0] == "middle"


def test_where_nothing_is_allowed_nothing_is_asked() -> None:
    chosen = policy(max_usd=0.0)
    with pytest.raises(PermissionDenied, match="max_usd"):
        chosen.plan(request(), ADA, (MIDDLE, LARGE))
    with pytest.raises(PermissionDenied, match="dearer than the policy allows"):
        chosen.permit(request(), ADA, LARGE.targets[0])


# What it chooses.


def test_a_cascade_where_answers_can_be_verified() -> None:
    plan = planned(policy(), request())
    assert [(a.tier.name, a.role, a.verifier is not None) for a in plan.attempts] == [
        ("small", "first", True),
        ("middle", "escalation", True),
        ("large", "escalation", False),
    ]
    assert plan.task == "math"
    assert plan.baseline is LARGE
    assert "cascade from small: math" in plan.why


def test_by_difficulty_where_nothing_can_be_verified() -> None:
    chosen = policy(threshold=0.5, verifiers=[])
    assert names(planned(chosen, request(EASY)))[0] == "small"
    assert names(planned(chosen, request(HARD)))[0] != "small"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 5))
def test_harder_is_never_given_to_a_weaker_tier(
    one: float, other: float, threshold: float, tiers: int
) -> None:
    low, high = sorted((one, other))
    weaker, stronger = (by_difficulty(score, threshold, tiers) for score in (low, high))
    assert 0 <= weaker <= stronger < tiers
    assert low >= threshold or weaker == 0


def test_the_first_rule_that_fits_decides() -> None:
    rules = [
        {"when": {"words": ["FRANCE"]}, "strategy": "largest"},
        {"when": {"notebooks": ["payroll/*"]}, "use": "middle", "name": "payroll"},
        {"when": {"principals": ["usr_*"]}, "strategy": "smallest"},
    ]
    chosen = policy(rules=rules)
    assert names(planned(chosen, request(EASY)))[0] == "large"
    plan = planned(chosen, request())
    assert names(plan)[0] == "middle"
    assert plan.why == "rule payroll: use middle"
    assert names(planned(chosen, request(), Caller("usr_ada")))[0] == "small"


def test_a_rule_of_length_and_difficulty() -> None:
    rules = [
        {"when": {"min_characters": 5000}, "use": "large"},
        {"when": {"max_characters": 100, "max_difficulty": 0.4}, "use": "small"},
    ]
    chosen = policy(rules=rules, verifiers=[])
    assert names(planned(chosen, request("word " * 1000)))[0] == "large"
    assert names(planned(chosen, request(EASY))) == ["small"]


def test_targets_are_wished_and_the_rest_is_kept_for_failures() -> None:
    posterior = Posterior(clock=lambda: 0.0)
    for tier, seconds in (("small", 60.0), ("middle", 2.0), ("large", 5.0)):
        for _ in range(20):
            posterior.observe("chat", tier, seconds=seconds)
    chosen = policy(posterior, strategy="smallest", target_seconds=10)
    assert names(planned(chosen, request(EASY))) == ["middle", "large", "small"]
    impossible = policy(posterior, strategy="smallest", target_seconds=1)
    plan = planned(impossible, request(EASY))
    assert names(plan)[0] == "middle", "the fastest"
    assert plan.notes == ("no model is expected to answer within 1 s",)
    cheap = planned(policy(strategy="largest", target_usd=0.001), request(EASY))
    assert names(cheap)[0] == "middle"


# What it learns.


def decided(*tried: tuple[str, str, float | None]) -> Decision:
    records = [
        AttemptRecord.model_validate(
            {
                "tier": tier,
                "provider": "p",
                "model": "m",
                "why": "",
                "outcome": outcome,
                "score": score,
                "seconds": 2.0,
                "cost_usd": 0.01,
            }
        )
        for tier, outcome, score in tried
    ]
    return Decision(tier=tried[-1][0], provider="p", model="m", why="", tried=records)


def test_a_tier_that_is_always_rejected_is_left_out_and_tried_again_later() -> None:
    at = [0.0]
    chosen = policy(Posterior(clock=lambda: at[0]))
    for _ in range(60):
        plan = planned(chosen, request())
        chosen.observe(plan, decided(("small", "rejected", 0.0), ("middle", "answered", 1.0)))
    assert names(planned(chosen, request()))[0] == "middle"
    assert chosen.posterior.belief("math", "middle").seconds == pytest.approx(2.0)
    at[0] += 365 * 86_400
    fresh = policy(chosen.posterior)
    assert names(planned(fresh, request()))[0] == "small"


def test_the_difficulty_is_learned_from_the_smallest_tier_alone() -> None:
    chosen = policy()
    before = chosen.difficulty.score(plan_features(chosen))
    for _ in range(10):
        plan = planned(chosen, request())
        chosen.observe(plan, decided(("middle", "rejected", 0.0), ("large", "answered", None)))
    assert chosen.difficulty.score(plan_features(chosen)) == before
    for _ in range(10):
        chosen.observe(plan, decided(("small", "rejected", 0.0), ("large", "answered", None)))
    assert chosen.difficulty.score(plan_features(chosen)) > before


def plan_features(chosen: RoutingPolicy) -> tuple[float, ...]:
    plan = planned(chosen, request())
    return plan.features  # type: ignore[attr-defined,no-any-return]


def test_failures_and_unverified_answers_say_nothing_of_quality() -> None:
    chosen = policy()
    chosen.observe(
        planned(chosen, request()), decided(("small", "failed", None), ("large", "answered", None))
    )
    assert chosen.posterior.belief("math", "small").timed == 0
    belief = chosen.posterior.belief("math", "large")
    assert (belief.good, belief.bad, round(belief.timed, 6)) == (0, 0, 1)


def test_learning_can_be_switched_off() -> None:
    chosen = policy(learn=False)
    chosen.observe(planned(chosen, request()), decided(("small", "rejected", 0.0)))
    assert chosen.posterior.belief("math", "small").bad == 0


def test_learned_takes_the_cheapest_that_is_good_enough() -> None:
    posterior = Posterior(clock=lambda: 0.0)
    for _ in range(100):
        posterior.observe("chat", "small", good=False)
        posterior.observe("chat", "middle", good=True)
    chosen = policy(posterior, strategy="learned", quality=0.8)
    first = [names(planned(chosen, request(EASY)))[0] for _ in range(50)]
    assert first.count("middle") > 45


def test_what_was_learned_outlives_the_server(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "uait.db"))
    database.open()

    async def run() -> tuple[float, float]:
        first = policy(Posterior(database))
        await first.start()
        for _ in range(120):
            plan = planned(first, request())
            first.observe(plan, decided(("small", "rejected", 0.0)))
        await first.stop()
        second = RoutingPolicy(
            first.settings, TIERS, posterior=Posterior(database), difficulty=Difficulty()
        )
        await second.start()
        kept = second.posterior.belief("math", "small").quality
        return kept, second.difficulty.score(plan_features(second))

    try:
        quality, score = asyncio.run(run())
    finally:
        database.close()
    assert quality < 0.1
    assert score > 0.7


# How it is set.


@pytest.mark.parametrize(
    ("entries", "where"),
    [
        ({"strategie": "cascade"}, r"policy\.strategie"),
        ({"strategy": "best"}, r"policy\.strategy"),
        ({"dearest": "huge"}, r"policy\.dearest: there is no tier 'huge'"),
        ({"rules": [{"use": "huge"}]}, r"policy\.rules\.0\.use: there is no tier"),
        ({"rules": [{"when": {"task": ["math"]}}]}, r"say what to do"),
        ({"rules": [{"when": {"task": ["cooking"]}, "use": "small"}]}, r"rules\.0\.when\.task"),
        ({"pins": {"everything": "here"}}, r"policy\.pins\.everything"),
        ({"max_usd": -1}, r"policy\.max_usd"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(entries: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidInput, match=where):
        policy(**entries)


def test_a_plan_is_a_matter_of_microseconds() -> None:
    chosen = policy(rules=[{"when": {"task": ["code"]}, "use": "large"}])
    began = time.process_time()
    for _ in range(100):
        planned(chosen, request(HARD))
    assert (time.process_time() - began) / 100 < 0.01
