"""Which answers can be verified, and the order of attempts that comes of it."""

from __future__ import annotations

import pytest

from tests.unit.routing.test_verify import Child
from tests.unit.routing.tiers import ALL, LARGE, MIDDLE, SMALL, TIERS, request, tier
from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.routing.cascade import cascade, single, start_of, verifier_for
from uait_server_ext.routing.difficulty import look
from uait_server_ext.routing.models import Attempt, Tier, Verifier
from uait_server_ext.routing.rules import PolicySettings
from uait_server_ext.routing.verify import (
    AllOf,
    Checks,
    Citations,
    LogprobMargin,
    SchemaVerifier,
    SelfAgreement,
    TestsVerifier,
)

CODE = "Write a Python function `add`."


def name_of(verifier: Verifier | None) -> str:
    if verifier is None:
        return ""
    if isinstance(verifier, AllOf):
        return "+".join(name_of(one) for one in verifier.verifiers)
    assert isinstance(
        verifier, (SchemaVerifier, TestsVerifier, Citations, SelfAgreement, LogprobMargin)
    )
    return verifier.name


def chosen(
    asked: ChatRequest, checks: Checks | None = None, at: Tier = SMALL, **settings: object
) -> str:
    policy = PolicySettings.model_validate(settings)
    return name_of(verifier_for(asked, look(asked).task, checks, policy, at))


@pytest.mark.parametrize(
    ("asked", "checks", "name"),
    [
        (request("What is love?"), None, ""),
        (request("?", response_format={"type": "json_object"}), None, "schema"),
        (request(), None, "agreement"),
        (request(CODE), None, ""),
        (request(CODE), Checks(tests="assert add"), ""),
        (request(CODE), Checks(tests="assert add", runner=Child()), "tests"),
        (request("Why?"), Checks(passages=("Because.",)), "citations"),
        (request("Why?"), Checks(verifiers=(SchemaVerifier(),)), "schema"),
    ],
)
def test_a_verifier_is_used_where_its_material_is(
    asked: ChatRequest, checks: Checks | None, name: str
) -> None:
    assert chosen(asked, checks) == name


def test_verifiers_are_those_that_the_file_names() -> None:
    assert chosen(request(), verifiers=[]) == ""
    assert chosen(request(), verifiers=["logprob", "agreement"]) == "logprob+agreement"
    mute = tier("mute", 0, "local", 0.0, ALL - {"logprobs"})
    assert chosen(request(), at=mute, verifiers=["logprob", "agreement"]) == "agreement"


def roles(attempts: tuple[Attempt, ...]) -> list[tuple[str, str, bool]]:
    return [(one.tier.name, one.role, one.verifier is not None) for one in attempts]


def test_all_are_verified_but_the_last() -> None:
    assert roles(cascade(TIERS, 0, "", lambda _: SchemaVerifier())) == [
        ("small", "first", True),
        ("middle", "escalation", True),
        ("large", "escalation", False),
    ]


def test_weaker_tiers_are_for_failures_only() -> None:
    assert roles(cascade(TIERS, 1, "", lambda _: SchemaVerifier())) == [
        ("middle", "first", True),
        ("large", "escalation", False),
        ("small", "fallback", False),
    ]
    assert roles(cascade(TIERS, 2, "", lambda _: SchemaVerifier())) == [
        ("large", "first", False),
        ("middle", "fallback", False),
        ("small", "fallback", False),
    ]


def test_a_cascade_ends_where_nothing_can_reject() -> None:
    only = {"small": SchemaVerifier()}
    assert roles(cascade(TIERS, 0, "", lambda t: only.get(t.name))) == [
        ("small", "first", True),
        ("middle", "escalation", False),
        ("large", "fallback", False),
    ]


def test_one_tier_has_the_others_behind_it() -> None:
    names = [one.tier.name for one in single(TIERS, 0, "")]
    assert names == ["small", "middle", "large"]
    assert [one.tier.name for one in single(TIERS, 1, "")] == ["middle", "large", "small"]
    assert all(one.role == "fallback" for one in single(TIERS, 1, "")[1:])


def test_a_cascade_begins_where_there_is_a_chance() -> None:
    share = {SMALL.name: 0.05, MIDDLE.name: 0.5, LARGE.name: 0.9}

    def start(difficulty: float, small: float = 0.05) -> int:
        accepted = share | {"small": small}
        return start_of(
            TIERS,
            lambda t: accepted[t.name],
            least=0.1,
            difficulty=difficulty,
            skip=0.9,
        )

    assert start(0.5, small=0.3) == 0
    assert start(0.5) == 1
    assert start(0.95, small=0.3) == 1
    assert start_of((LARGE,), lambda _: 0.0, least=0.1, difficulty=1.0, skip=0.9) == 0
