"""What routing speaks of: tiers and what they cost, callers, plans, and the record of a decision.

::

    request, caller ─ Policy.plan ─► Plan(Attempt, …) ─ Router ─► text, Failover?, RoutedDone
                          ▲                                                          │
                          └────────────── Policy.observe(plan, Decision) ◄───────────┘

The policy says which tiers, in which order and why; the router runs them: targets, breakers,
retries, budgets, verification, cache. A tier's targets stand in for each other; a tier never does
for another unless the plan says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

from pydantic import Field

from uait_server_ext.inference.models import (
    ChatDone,
    ChatRequest,
    JsonObject,
    JsonSchema,
    Regex,
    TextDelta,
    TokenLogprob,
    Usage,
)
from uait_server_ext.schema import Schema

if TYPE_CHECKING:
    from .verify import Checks

PrivacyClass = Literal["local", "private", "public"]
"""Where a prompt goes: stays on this machine, stays in the organisation, goes to anybody."""

REACH: dict[PrivacyClass, int] = {"local": 0, "private": 1, "public": 2}

Capability = Literal[
    "tools",
    "vision",
    "json_object",
    "json_schema",
    "regex",
    "logprobs",
    "seed",
    "top_k",
    "min_p",
    "penalties",
]
LOCAL: Final = "local"
"""The provider that is `Inference` on this machine; it is always there."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Return what the tokens cost, in US dollars."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """What a target may be asked at once and a minute; none: as much as comes."""

    concurrent: int | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One model at one provider.

    Attributes:
        model: its name here; a request names it as `provider/model`.
        name: its name at the provider.
    """

    provider: str
    model: str
    name: str
    price: Price = Price()
    privacy: PrivacyClass = "public"
    capabilities: frozenset[Capability] = frozenset()
    context_tokens: int | None = None
    limits: Limits = Limits()

    @property
    def id(self) -> str:
        """The id by which requests and records name it."""
        return f"{self.provider}/{self.model}"

    def may_serve(self, needs: frozenset[Capability], reach: PrivacyClass) -> bool:
        """Tell whether it can do what is needed and the words may go there."""
        return needs <= self.capabilities and REACH[self.privacy] <= REACH[reach]


@dataclass(frozen=True, slots=True)
class Tier:
    """Targets of one strength, in the order in which they are tried.

    Attributes:
        rank: 0 is the smallest; a higher rank is stronger and may be dearer.
    """

    name: str
    rank: int
    targets: tuple[Target, ...]

    @property
    def price(self) -> Price:
        """The dearest that an answer of this tier can be."""
        return Price(
            max(target.price.input for target in self.targets),
            max(target.price.output for target in self.targets),
        )

    def serving(self, needs: frozenset[Capability], reach: PrivacyClass) -> tuple[Target, ...]:
        """Return the targets that can do what is needed and where the words may go."""
        return tuple(target for target in self.targets if target.may_serve(needs, reach))


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is: what budgets, fairness and the cache go by.

    Attributes:
        collection: of the knowledge base, where the words hold passages of it.
        reach: how far the words may travel; `local`: they never leave this machine.
        checks: what an answer can be verified with; see `verify.py`.
    """

    principal: str
    notebook: str | None = None
    run: str | None = None
    reach: PrivacyClass = "public"
    collection: str | None = None
    checks: Checks | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """What a call may take, or took."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


class AttemptRecord(Schema):
    """One target that was tried, or passed over."""

    tier: str
    provider: str
    model: str
    why: str
    outcome: Literal["answered", "rejected", "failed", "skipped"]
    detail: str | None = Field(None, description="The error, or what the verifier found.")
    score: float | None = Field(None, description="Of the verifier, 0 to 1.")
    usage: Usage = Field(default_factory=Usage)
    cost_usd: float = 0.0
    seconds: float = 0.0
    first_token_seconds: float | None = None


class Decision(Schema):
    """Why this model answered, what was tried before, and what it cost."""

    tier: str
    provider: str
    model: str
    why: str
    task: str = Field("", description="The class of task that the policy saw in the request.")
    tried: list[AttemptRecord] = Field(default_factory=list)
    cost_usd: float = Field(0.0, description="Of everything tried, US dollars.")
    seconds: float = 0.0
    saved_usd: float | None = Field(
        None, description="Against asking the strongest tier at once; below 0 where it cost more."
    )
    cache: Literal["off", "miss", "exact", "semantic"] = "off"
    shared: bool = Field(
        False, description="An equal request of the same person was under way: one call, one cost."
    )
    degraded: bool = Field(
        False, description="A lesser model answered, because those that were wanted could not."
    )
    notes: list[str] = Field(default_factory=list, description="What the reader should know.")


class RoutedDone(ChatDone):
    """The last event of a routed completion."""

    decision: Decision


class Failover(Schema):
    """A model failed in the middle of its answer: what came so far is void, another begins anew."""

    type: Literal["failover"] = "failover"
    failed: str = Field(description="`provider/model` that broke off.")
    to: str = Field(description="`provider/model` that begins anew.")
    why: str


RoutedEvent = Annotated[TextDelta | Failover | RoutedDone, Field(discriminator="type")]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier thinks of an answer.

    Attributes:
        score: 0 (surely wrong) to 1 (surely right).
        verifier: its name, for the record.
    """

    accepted: bool
    score: float
    verifier: str
    why: str = ""


class HeldAnswer(ChatDone):
    """An answer that waits for its verdict, with the tokens' logprobs where they were asked for."""

    logprobs: list[TokenLogprob] = Field(default_factory=list)


Again = Callable[[ChatRequest], Awaitable[ChatDone]]
"""Ask the tier under test once more: counted against the budget and in the decision."""


class Verifier(Protocol):
    """Decides whether an answer is good enough to be given."""

    def asks(self, request: ChatRequest) -> ChatRequest:
        """Return the request as the tier under test gets it: with what the verdict needs."""
        ...

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Judge an answer; what it raises is recorded, and the answer counts as not verified."""
        ...


Role = Literal["first", "escalation", "fallback"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One tier to be tried.

    Attributes:
        role: after a *failure* whatever is next is tried; after a *rejection* by the verifier the
            next `escalation`, so a `fallback` is never asked to do better.
        verifier: with one, the answer is held back until it is accepted; without, it streams.
    """

    tier: Tier
    why: str
    role: Role = "first"
    verifier: Verifier | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try, in order; at least one attempt.

    Attributes:
        task: the class of task, for what is learned from the outcome.
        baseline: the tier that `saved_usd` is measured against; none: nothing to save.
    """

    attempts: tuple[Attempt, ...]
    why: str
    task: str = ""
    baseline: Tier | None = None
    notes: tuple[str, ...] = ()


class Policy(Protocol):
    """Chooses tiers. All functions run in the event loop: microseconds, no input or output."""

    def pinned(self, request: ChatRequest, caller: Caller) -> Caller:
        """Return the caller with how far the words may travel by rules and pins; asked first."""
        ...

    def permit(self, request: ChatRequest, caller: Caller, target: Target) -> None:
        """Let a request that names a target pass. Raises `PermissionDenied`."""
        ...

    def plan(self, request: ChatRequest, caller: Caller, tiers: Sequence[Tier]) -> Plan:
        """Say what to try for a request whose model is `auto`.

        Args:
            tiers: those with a target that can do what the request needs and where the caller's
                words may go, by rank; at least one.
        """
        ...

    def observe(self, plan: Plan, decision: Decision) -> None:
        """Learn from a request that has ended, answered or not."""
        ...


class Reservation(Protocol):
    """A part of a budget, set aside for one call."""

    async def settle(self, actual: Amount) -> None:
        """Book what the call took, and give the rest back."""
        ...

    async def release(self) -> None:
        """Give all of it back: the call was not made."""
        ...


class Budgets(Protocol):
    """Hard limits per principal, notebook and run."""

    async def reserve(self, caller: Caller, estimate: Amount) -> Reservation:
        """Set the most that a call can take aside, before it is made.

        Raises:
            BudgetExceeded: it does not fit any more.
        """
        ...


def needs_of(request: ChatRequest) -> frozenset[Capability]:
    """Return what a target must be able to do for a request."""
    needs: list[Capability] = []
    if request.tools:
        needs.append("tools")
    if any(message.images for message in request.messages):
        needs.append("vision")
    if isinstance(request.response_format, JsonObject):
        needs.append("json_object")
    elif isinstance(request.response_format, JsonSchema):
        needs.append("json_schema")
    elif isinstance(request.response_format, Regex):
        needs.append("regex")
    if request.logprobs is not None:
        needs.append("logprobs")
    if request.seed is not None:
        needs.append("seed")
    if request.top_k:
        needs.append("top_k")
    if request.min_p:
        needs.append("min_p")
    if request.presence_penalty or request.frequency_penalty:
        needs.append("penalties")
    return frozenset(needs)
