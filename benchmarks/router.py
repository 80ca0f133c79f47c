"""Measure how well the router chooses, on recorded answers of real models.

    python benchmarks/router.py [--data DIR] [--quick] [--check]

The product's own `Router`, policy, cascade and verifiers run; only the models are recorded. Two
models (RouteLLM's Mixtral-8x7B and GPT-4-1106 on GSM8K): PGR is the share recovered of what the
strong model is better by, APGR its mean over all shares of strong calls, CPT(x) the share of strong
calls that PGR = x needs (Ong et al., "RouteLLM", 2024, arXiv:2406.18665). **The errors of the
verifier are simulated there**: seeded, independent, on real labels. Four tiers (OpenAI's GSM8K
solutions of 6B and 175B models): the verifier is the product's self-agreement on recorded answers,
which knows no label and is not simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any, NamedTuple

from uait_server_ext.errors import ModelNotFound
from uait_server_ext.inference.models import (
    ChatDone,
    ChatEvent,
    ChatRequest,
    Message,
    TextDelta,
    Usage,
)
from uait_server_ext.routing.config import RoutingFile, routing_of
from uait_server_ext.routing.difficulty import Difficulty, look
from uait_server_ext.routing.models import Again, Caller, RoutedDone, Target, Verdict, Verifier
from uait_server_ext.routing.policy import RoutingPolicy
from uait_server_ext.routing.rules import read_policy
from uait_server_ext.routing.service import Router
from uait_server_ext.routing.verify import Checks

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PRICES = {"weak": (0.24, 0.24), "strong": (10.0, 30.0), "6b": (0.1, 0.1), "175b": (3.0, 3.0)}
"""US dollars per million tokens: those of RouteLLM's paper; the two others by their size."""

LEAST_PGR, MOST_STRONG, VERIFIER = 0.95, 0.5, 0.8
LEAST_APGR = 0.55
LEAST_SAVED = 0.15
FOLDS = 5


class Item(NamedTuple):
    """A question, and of each model its answers and whether the first is right."""

    question: str
    answers: dict[str, Sequence[str]]
    right: dict[str, bool]


class Outcome(NamedTuple):
    """What came of one question."""

    right: bool
    strong: bool
    usd: float
    saved: float
    seconds: float


@dataclass
class Recorded:
    """A provider whose models give recorded answers: the first, and to whoever asks again others.

    `check` and `chat` without a target are those of a machine that has no models.
    """

    items: dict[str, Item]
    asked: dict[tuple[str, str], int] = field(default_factory=dict)

    async def chat(
        self, target: Target, request: ChatRequest, caller: Caller
    ) -> AsyncGenerator[ChatEvent, None]:
        """Give the next recorded answer; tokens are counted as four characters each."""
        question = request.messages[-1].content
        answers = self.items[question].answers[target.model]
        place = self.asked.get((target.model, question), 0)
        self.asked[target.model, question] = place + 1
        text = answers[place % len(answers)]
        yield TextDelta(text=text)
        yield ChatDone(
            text=text,
            model=target.model,
            backend="recorded",
            finish_reason="stop",
            usage=Usage(prompt_tokens=len(question) // 4, completion_tokens=len(text) // 4),
            first_token_seconds=0.0,
            seconds=0.0,
        )

    async def close(self) -> None:
        """Nothing is open."""


class NoModels:
    """A machine without models of its own."""

    def check(self, model: str) -> None:
        raise ModelNotFound(f"there is no {model}")

    def chat(self, request: ChatRequest, *, caller: str = "") -> AsyncIterator[ChatEvent]:
        raise ModelNotFound("there is none")


@dataclass(frozen=True)
class Simulated:
    """A verifier that is right with a given probability, whatever the answer: a simulation.

    Its score is normal, one mean for right answers and one for wrong ones, so that at 0.5 it errs
    as often as it is to; another threshold trades the two errors.
    """

    right: bool
    noise: float
    accuracy: float
    threshold: float = 0.5

    def asks(self, request: ChatRequest) -> ChatRequest:
        return request

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        distance = NormalDist().inv_cdf(self.accuracy)
        place = (distance if self.right else -distance) + self.noise
        score = NormalDist().cdf(place)
        return Verdict(score >= self.threshold, score, "simulated")


@dataclass(frozen=True)
class Curve:
    """Points of (share of strong calls, PGR, US dollars per 1,000 questions)."""

    name: str
    points: list[tuple[float, float, float]]

    @property
    def ordered(self) -> list[tuple[float, float]]:
        """The points from no strong call to nothing but strong calls."""
        return [(0.0, 0.0), *sorted((x, y) for x, y, _ in self.points if 0 < x < 1), (1.0, 1.0)]

    @property
    def apgr(self) -> float:
        """The area under the curve."""
        line = self.ordered
        return sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(line))

    def cpt(self, pgr: float) -> float:
        """Return the least share of strong calls with which that PGR is reached."""
        line = self.ordered
        for (x1, y1), (x2, y2) in pairwise(line):
            if y2 >= pgr:
                return x1 if y1 >= pgr else x1 + (x2 - x1) * (pgr - y1) / (y2 - y1)
        return 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds routing/")
    parser.add_argument("--quick", action="store_true", help="a third of the questions, few points")
    parser.add_argument("--check", action="store_true", help="fail below the floors")
    options = parser.parse_args(arguments)
    folder = options.data / "routing"
    if not folder.is_dir():
        print(f"{folder} is not there: nothing to measure")
        return 0
    two, four = read_two(folder), read_four(folder)
    if options.quick:
        two, four = two[::3], four[::3]
    steps, seeds = (7, 1) if options.quick else (13, 3)
    with asyncio.Runner() as runner:
        return runner.run(measure(two, four, steps, seeds, check=options.check))


def read_two(folder: Path) -> list[Item]:
    """Read the questions that a weak and a strong model answered."""
    with (folder / "gsm8k_two_models.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [
        Item(
            question,
            {"weak": [weak_text], "strong": [strong_text]},
            {"weak": weak == "True", "strong": strong == "True"},
        )
        for question, weak, strong, weak_text, strong_text in rows
    ]


def read_four(folder: Path) -> list[Item]:
    """Read the questions of the four tiers: two answers of 6B, and the best of 175B."""
    items = []
    for line in (folder / "gsm8k_four_tiers.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        small = [row[name]["solution"] for name in ("6b_verification", "6b_finetuning")]
        right = {
            "6b": row["6b_verification"]["is_correct"],
            "175b": row["175b_verification"]["is_correct"],
        }
        answers: dict[str, Sequence[str]] = {
            "6b": small,
            "175b": [row["175b_verification"]["solution"]],
        }
        items.append(Item(row["question"], answers, right))
    return items


async def measure(two: list[Item], four: list[Item], steps: int, seeds: int, *, check: bool) -> int:
    """Run every strategy; print the tables; return the exit code."""
    weak, strong = (fmean(item.right[name] for item in two) for name in ("weak", "strong"))
    print(f"two models, {len(two)} questions: weak {weak:.3f}, strong {strong:.3f} right\n")
    shares = [(number + 1) / (steps + 1) for number in range(steps)]
    curves = [
        await by_length(two, shares),
        await by_difficulty(two, shares, learned=False),
        await by_difficulty(two, shares, learned=True),
        await by_verifier(two, shares),
    ]
    print(f"{'':34}{'APGR':>7}{'CPT50':>8}{'CPT80':>8}")
    print(f"{'random':34}{0.5:7.3f}{0.5:8.0%}{0.8:8.0%}")
    for curve in curves:
        print(f"{curve.name:34}{curve.apgr:7.3f}{curve.cpt(0.5):8.0%}{curve.cpt(0.8):8.0%}")
    print("\ncost curve: $ per 1,000 questions and PGR at shares of strong calls")
    for curve in curves:
        chosen = [p for number, p in enumerate(sorted(curve.points)) if number % 3 == 0]
        told = "  ".join(f"{x:4.0%} ${usd:5.2f} {pgr:5.2f}" for x, pgr, usd in chosen)
        print(f"{curve.name:34}{told}")
    print(f"\n{'cascade, verifier simulated':34}{'strong':>8}{'PGR':>7}{'$/1,000':>9}{'saved':>8}")
    reached = (0.0, 1.0)
    for accuracy in (0.7, 0.8, 0.9):
        runs = [await cascade(two, accuracy, seed=seed) for seed in range(seeds)]
        share, pgr, usd, saved = (fmean(values) for values in zip(*runs, strict=True))
        name = f"right in {accuracy:.0%} of the cases"
        print(f"{name:34}{share:8.1%}{pgr:7.3f}{usd:9.2f}{saved:8.1%}")
        if accuracy == VERIFIER:
            reached = pgr, share
    big, kept, always = await agreement(four)
    learned = max(curve.apgr for curve in curves[1:3])
    print(
        f"\nPGR {reached[0]:.3f} with {reached[1]:.1%} strong calls at a verifier accuracy of "
        f"{VERIFIER:.0%} (floor {LEAST_PGR} with at most {MOST_STRONG:.0%}); label-free: "
        f"{1 - big:.1%} fewer big calls"
    )
    missed = (
        reached[0] < LEAST_PGR
        or reached[1] > MOST_STRONG
        or learned < LEAST_APGR
        or 1 - big < LEAST_SAVED
        or kept < always - 0.01
    )
    return 1 if check and missed else 0


async def run(
    items: Iterable[Item],
    policy: RoutingPolicy,
    models: tuple[str, str],
    verifiers: dict[str, Verifier] | None = None,
) -> list[Outcome]:
    """Ask the router every question; one after the other, as what it learns depends on that."""
    items = list(items)
    recorded = Recorded({item.question: item for item in items})
    routing = routing_of(RoutingFile.model_validate(routing_file(models)))
    policy.tiers = {tier.name: tier for tier in routing.tiers}
    router = Router(NoModels(), {"recorded": recorded}, routing, policy=policy)
    outcomes = []
    for item in items:
        mine = verifiers.get(item.question) if verifiers else None
        caller = Caller("benchmark", checks=Checks(verifiers=(mine,)) if mine else None)
        began = time.perf_counter()
        done = None
        async for event in router.chat(asked(item), caller):
            done = event
        assert isinstance(done, RoutedDone)
        decision = done.decision
        outcomes.append(
            Outcome(
                right=item.right[decision.model],
                strong=any(record.model == models[1] for record in decision.tried),
                usd=decision.cost_usd,
                saved=decision.saved_usd or 0.0,
                seconds=time.perf_counter() - began,
            )
        )
    await router.stop()
    return outcomes


def routing_file(models: tuple[str, str]) -> dict[str, Any]:
    """Return the routing file of two tiers."""
    prices = {name: dict(zip(("input", "output"), PRICES[name], strict=True)) for name in models}
    return {
        "providers": {
            "recorded": {
                "url": "http://127.0.0.1:1/v1",
                "models": {name: {"price": price} for name, price in prices.items()},
            }
        },
        "tiers": [{"name": name, "models": [f"recorded/{name}"]} for name in models],
        "failover": {"local": False},
    }


def asked(item: Item) -> ChatRequest:
    """Return the request; sampled, so that neither cache nor single flight has a part in it."""
    message = Message(role="user", content=item.question)
    return ChatRequest(messages=[message], temperature=0.5, max_tokens=512)


def policy_of(seed: int = 0, difficulty: Difficulty | None = None, **entries: Any) -> RoutingPolicy:
    """Return the product's policy with a table of the routing file."""
    names = ("weak", "strong", "6b", "175b")
    return RoutingPolicy(
        read_policy(entries, names), difficulty=difficulty, random=random.Random(seed)
    )


def point(items: list[Item], outcomes: list[Outcome]) -> tuple[float, float, float]:
    """Return share of strong calls, PGR, US dollars per 1,000 questions."""
    weak, strong = (fmean(item.right[name] for item in items) for name in ("weak", "strong"))
    right = fmean(outcome.right for outcome in outcomes)
    share = fmean(outcome.strong for outcome in outcomes)
    return share, (right - weak) / (strong - weak), 1000 * fmean(o.usd for o in outcomes)


async def by_length(items: list[Item], shares: Sequence[float]) -> Curve:
    """Long questions to the strong model, by a rule of the routing file."""
    lengths = sorted(len(item.question) for item in items)
    points = []
    for share in shares:
        least = lengths[int((1 - share) * len(lengths))]
        rules = [{"when": {"min_characters": least}, "use": "strong"}]
        policy = policy_of(strategy="smallest", rules=rules, learn=False)
        points.append(point(items, await run(items, policy, ("weak", "strong"))))
    return Curve("rules (length)", points)


async def by_difficulty(items: list[Item], shares: Sequence[float], *, learned: bool) -> Curve:
    """Hard questions to the strong model; `learned`: from the labels of the other four fifths."""
    folds: list[tuple[Difficulty, list[Item]]] = [(Difficulty(), items)]
    if learned:
        order = random.Random(0).sample(items, len(items))
        folds = []
        for number in range(FOLDS):
            difficulty = Difficulty()
            for place, item in enumerate(order):
                if place % FOLDS != number:
                    difficulty.learn(look(asked(item)).features, hard=not item.right["weak"])
            folds.append((difficulty, order[number::FOLDS]))
    points = []
    for share in shares:
        outcomes: list[Outcome] = []
        done: list[Item] = []
        for difficulty, part in folds:
            scores = sorted(difficulty.score(look(asked(item)).features) for item in part)
            policy = policy_of(
                strategy="difficulty",
                difficulty=difficulty,
                threshold=scores[int((1 - share) * len(scores))],
                learn=False,
            )
            outcomes += await run(part, policy, ("weak", "strong"))
            done += part
        points.append(point(done, outcomes))
    return Curve(f"difficulty ({'learned, 5 folds' if learned else 'as shipped'})", points)


async def by_verifier(items: list[Item], shares: Sequence[float]) -> Curve:
    """Cascade with a simulated verifier that errs in a fifth of the cases, at its thresholds."""
    points = []
    for threshold in shares:
        verifiers = simulated(items, VERIFIER, 0, threshold)
        policy = policy_of(verifiers=[])
        points.append(point(items, await run(items, policy, ("weak", "strong"), verifiers)))
    return Curve(f"cascade (verifier {VERIFIER:.0%}, simulated)", points)


async def cascade(
    items: list[Item], accuracy: float, seed: int
) -> tuple[float, float, float, float]:
    """Return share of strong calls, PGR, $ per 1,000, and what is saved of always strong."""
    verifiers = simulated(items, accuracy, seed)
    outcomes = await run(items, policy_of(seed, verifiers=[]), ("weak", "strong"), verifiers)
    saved, spent = (
        sum(values) for values in zip(*((o.saved, o.usd) for o in outcomes), strict=True)
    )
    return *point(items, outcomes), saved / (saved + spent)


def simulated(
    items: list[Item], accuracy: float, seed: int, threshold: float = 0.5
) -> dict[str, Verifier]:
    """Return for each question a verifier that knows the label and errs as often as it is to."""
    chance = random.Random(seed)
    return {
        item.question: Simulated(item.right["weak"], chance.gauss(0, 1), accuracy, threshold)
        for item in items
    }


async def agreement(items: list[Item]) -> tuple[float, float, float]:
    """Accept what two 6B answers agree on, else ask 175B.

    Returns the share of big calls, of right answers, and of those that 175B always gets right.
    """
    outcomes = await run(items, policy_of(verifiers=["agreement"]), ("6b", "175b"))
    small, always = (fmean(item.right[name] for item in items) for name in ("6b", "175b"))
    kept, big = fmean(o.right for o in outcomes), fmean(o.strong for o in outcomes)
    cost = sum(o.usd for o in outcomes) / sum(o.usd + o.saved for o in outcomes)
    print(f"\nfour tiers, {len(items)} questions: 6B {small:.3f}, 175B {always:.3f} right")
    print(
        f"two 6B answers agree (no label): {kept:.3f} right with {big:.1%} big calls, "
        f"{cost:.1%} of the cost of always asking 175B"
    )
    return big, kept, always


if __name__ == "__main__":
    sys.exit(main())
