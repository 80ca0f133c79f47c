"""The router: which model answers a request, and what is done when it cannot.

::

    cache? ─► equal request under way? ─► plan ─► Course (budget, breaker, retry, failover, check)
       └ found: the kept answer              └ one model named: that one, and no other

It stands where `Inference` would: `check` and `chat` are those of `ChatModel`. Without a routing
file it passes requests on to the models of this machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from uait_server_ext.errors import InvalidInput, ModelNotFound, UaitError
from uait_server_ext.inference.models import (
    DEFAULT_MODEL,
    ChatDone,
    ChatEvent,
    ChatRequest,
    ModelInfo,
    ServiceState,
    TextDelta,
)

from .cache import AnswerCache, repeatable
from .channel import Channel
from .config import LOCAL_CAPABILITIES, Routing, local_target
from .failover import Course
from .flight import Flights
from .models import (
    LOCAL,
    REACH,
    Amount,
    Attempt,
    Budgets,
    Caller,
    Failover,
    Plan,
    Policy,
    Price,
    RoutedDone,
    RoutedEvent,
    Target,
    Tier,
    needs_of,
)
from .providers import Provider
from .providers.local import LocalModels

DEGRADE_WHY = "none of the models that were wanted could answer"


class Router:
    """Answers with the model that the policy chooses, or with the one that is named.

    Args:
        policy: for `auto`; none: the tiers in the file's order, each for when the last failed.
        estimate: the most that a call can take, for budgets.
    """

    def __init__(
        self,
        local: LocalModels,
        providers: dict[str, Provider],
        routing: Routing,
        *,
        policy: Policy | None = None,
        budgets: Budgets | None = None,
        estimate: Callable[[ChatRequest, Price], Amount] | None = None,
        cache: AnswerCache | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self.routing = routing
        self.cache = cache
        self._local = local
        self._providers = providers
        self._policy = policy
        self._budgets = budgets
        self._estimate = estimate
        self._log = log or logging.getLogger("uait.routing")
        self._channels: dict[str, Channel] = {}
        self._flights = Flights()
        self._hedge = {t.name: t.hedge_seconds for t in routing.file.tiers if t.hedge_seconds}

    def check(self, model: str) -> None:
        """Raise `ModelNotFound` where no chat model has that id."""
        if model != DEFAULT_MODEL or not self.routing.tiers:
            self._target(model)

    def bound(self, caller: Caller) -> BoundRouter:
        """Return the router as a `ChatModel` for one caller; it never begins an answer anew."""
        return BoundRouter(self, caller)

    async def chat(
        self, request: ChatRequest, caller: Caller, *, restart: bool = True
    ) -> AsyncGenerator[RoutedEvent, None]:
        """Stream a completion; the last event is `RoutedDone`. Closing the iterator cancels it.

        Args:
            restart: the reader understands `Failover`; else an answer that breaks off is an error.

        Raises:
            ModelNotFound, InvalidInput, PermissionDenied: it cannot be answered as it is.
            BudgetExceeded: it would pass a limit of its caller.
            Busy, Unavailable: nobody could answer now.
        """
        if self._policy is not None:
            caller = self._policy.pinned(request, caller)
        if not repeatable(request, caller):
            events = self._answer(request, caller, restart)
        else:
            events = self._repeatable(request, caller, restart)
        async with aclosing(events):
            async for event in events:
                yield event

    async def models(self) -> list[ModelInfo]:
        """Return the remote models of the file, as the catalogue tells of local ones."""
        return [
            ModelInfo(
                id=target.id,
                kind="chat",
                description=f"{target.name} at {target.provider}; {target.privacy}",
                source=f"provider:{target.provider}",
                licence="see the provider",
                size_bytes=0,
                memory_bytes=0,
                context_tokens=target.context_tokens or 0,
                state="loaded",
                backend=self.routing.provider(target.provider).kind,
                note=self._note(target),
            )
            for target in self.routing.targets.values()
            if target.provider != LOCAL
        ]

    def state(self) -> list[ServiceState]:
        """Return how the providers stand, for the health report."""
        resting = [c for c in self._channels.values() if c.breaker.state != "closed"]
        if not resting:
            return [ServiceState("routing", "ready")]
        told = ", ".join(f"{c.target.id} ({c.breaker.state})" for c in resting)
        return [ServiceState("routing", "ready", f"left alone for now: {told}")]

    async def stop(self) -> None:
        """Let go of connections; what was learned is the policy's to keep."""
        for provider in self._providers.values():
            await provider.close()

    async def _repeatable(
        self, request: ChatRequest, caller: Caller, restart: bool
    ) -> AsyncGenerator[RoutedEvent, None]:
        """Answer from the cache, with an equal request that is under way, or anew."""
        cache = self.cache if self.cache is not None and self.cache.on else None
        key = ""
        if cache is not None:
            key = cache.key(request, caller)
            began = time.monotonic()
            self.check(request.model)
            found = await cache.find(request, caller, key)
            if found is not None:
                done, how = found
                for event in replayed(done, how, time.monotonic() - began):
                    yield event
                return
        flight = (caller, restart, request.model_dump_json())
        whole = True
        last: RoutedDone | None = None
        events = self._flights.join(flight, lambda: self._answer(request, caller, restart))
        async with aclosing(events):
            async for event in events:
                if isinstance(event, RoutedDone):
                    last = event
                    if cache is not None:
                        kept = event.decision.model_copy(update={"cache": "miss"})
                        event = event.model_copy(update={"decision": kept})
                elif isinstance(event, Failover) or (
                    isinstance(event, TextDelta) and event.logprobs
                ):
                    whole = False
                yield event
        if cache is not None and last is not None and whole and keepable(last):
            await cache.put(request, caller, key, last)

    async def _answer(
        self, request: ChatRequest, caller: Caller, restart: bool
    ) -> AsyncGenerator[RoutedEvent, None]:
        """Plan, run the plan, and let the policy learn from how it ended."""
        plan = self._plan(request, caller)
        limit = request.deadline_seconds
        course = Course(
            plan,
            self._candidates(plan, request, caller),
            request,
            caller,
            deadline=None if limit is None else time.monotonic() + limit,
            restart=restart,
            budgets=self._budgets,
            estimate=self._estimate,
            hedge=self._hedge,
        )
        done = False
        events = course.run()
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, RoutedDone):
                        done = True
                        self._observe(plan, event)
                    yield event
        except UaitError:
            if not done and self._policy is not None:
                self._policy.observe(plan, course.failed())
            raise

    def _observe(self, plan: Plan, done: RoutedDone) -> None:
        if self._policy is not None:
            self._policy.observe(plan, done.decision)
        if done.decision.degraded:
            self._log.warning("a lesser model answered: %s", done.decision.notes[-1])

    def _plan(self, request: ChatRequest, caller: Caller) -> Plan:
        """Return what to try: one model that is named, or what the policy says."""
        if request.model != DEFAULT_MODEL or not self.routing.tiers:
            target = self._target(request.model)
            self._permit(request, caller, target)
            tier = self._tier_of(target)
            return Plan((Attempt(tier, "the request names it"),), "the request names the model")
        needs = needs_of(request)
        tiers = [t for t in self.routing.tiers if t.serving(needs, caller.reach)]
        spare = self._spare(request, caller)
        if not tiers and spare is None:
            raise self._nobody(request, caller)
        if not tiers:
            assert spare is not None
            return Plan((spare,), DEGRADE_WHY)
        plan = (
            self._policy.plan(request, caller, tiers)
            if self._policy is not None
            else in_order(tiers)
        )
        local = {t.id for a in plan.attempts for t in a.tier.targets if t.provider == LOCAL}
        if spare is None or local:
            return plan
        return replace(plan, attempts=(*plan.attempts, spare))

    def _spare(self, request: ChatRequest, caller: Caller) -> Attempt | None:
        """Return the local model as the last resort, where that is wanted and it may serve."""
        if not self.routing.file.failover.local or not needs_of(request) <= LOCAL_CAPABILITIES:
            return None
        tier = Tier(LOCAL, -1, (local_target(DEFAULT_MODEL),))
        return Attempt(tier, DEGRADE_WHY, "fallback")

    def _candidates(
        self, plan: Plan, request: ChatRequest, caller: Caller
    ) -> list[tuple[Attempt, list[Channel]]]:
        """Return the channels of each attempt; a privacy bound holds whatever the plan says."""
        needs = needs_of(request)
        found = [
            (attempt, [self.channel(t) for t in attempt.tier.serving(needs, caller.reach)])
            for attempt in plan.attempts
        ]
        found = [(attempt, channels) for attempt, channels in found if channels]
        if not found:
            raise self._nobody(request, caller, plan.attempts[0].tier)
        return found

    def channel(self, target: Target) -> Channel:
        """Return the channel of a target; made at its first use, kept for its breaker."""
        channel = self._channels.get(target.id)
        if channel is None:
            channel = self._channels[target.id] = Channel(
                target, self._providers[target.provider], self.routing.provider(target.provider)
            )
        return channel

    def _target(self, model: str) -> Target:
        """Return the target that a request names. Raises `ModelNotFound`."""
        if (known := self.routing.targets.get(model)) is not None:
            return known
        provider, slash, name = model.rpartition("/") if "/" in model else (LOCAL, "", model)
        if slash and provider != LOCAL:
            ids = ", ".join(sorted(self.routing.targets)) or "none"
            raise ModelNotFound(f"There is no model {model!r} at a provider. There are: {ids}.")
        self._local.check(name)
        return self.routing.targets.get(f"{LOCAL}/{name}") or local_target(name)

    def _tier_of(self, target: Target) -> Tier:
        """Return a tier of that target alone: who names a model gets no other."""
        for tier in self.routing.tiers:
            if target in tier.targets:
                return Tier(tier.name, tier.rank, (target,))
        return Tier(target.id, 0, (target,))

    def _permit(self, request: ChatRequest, caller: Caller, target: Target) -> None:
        if self._policy is not None:
            self._policy.permit(request, caller, target)
        if not target.may_serve(needs_of(request), caller.reach):
            raise self._nobody(request, caller, Tier(target.id, 0, (target,)))

    def _nobody(self, request: ChatRequest, caller: Caller, tier: Tier | None = None) -> UaitError:
        """Return the error of a request that no target may or can serve."""
        targets = tier.targets if tier else tuple(self.routing.targets.values())
        within = [t for t in targets if REACH[t.privacy] <= REACH[caller.reach]]
        if not within:
            return InvalidInput(
                f"This request may not leave its bounds (`{caller.reach}`), and no model is within "
                "them. Choose a local model."
            )
        needs = needs_of(request)
        missing = min((needs - t.capabilities for t in within), key=len)
        return InvalidInput(
            f"{', '.join(t.id for t in within)} cannot do what is asked: "
            f"{', '.join(sorted(missing))}. Ask without, or choose another model."
        )

    def _note(self, target: Target) -> str | None:
        channel = self._channels.get(target.id)
        if channel is None or channel.breaker.state == "closed":
            return None
        return f"left alone for {channel.breaker.wait_seconds:.0f} s: it failed too often"


class BoundRouter:
    """The router for one caller, as a `ChatModel`."""

    def __init__(self, router: Router, caller: Caller) -> None:
        self._router = router
        self._caller = caller

    def check(self, model: str) -> None:
        """Raise `ModelNotFound` where no chat model has that id."""
        self._router.check(model)

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """Stream a completion; closing the iterator cancels it."""
        events = self._router.chat(request, self._caller, restart=False)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, (TextDelta, ChatDone)):
                    yield event


def in_order(tiers: list[Tier]) -> Plan:
    """Return the plan without a policy: the weakest tier, the others for when it fails."""
    first, *others = tiers
    attempts = [Attempt(first, "the first tier")]
    attempts += [Attempt(tier, "the tiers before it failed", "fallback") for tier in others]
    return Plan(tuple(attempts), "the first tier that can do what is asked")


def keepable(done: RoutedDone) -> bool:
    """Tell whether an answer may be given again: what was wanted, from whom it was wanted."""
    decision = done.decision
    accepted = decision.tried and decision.tried[-1].outcome == "answered"
    return bool(accepted and not decision.degraded and not decision.shared)


def replayed(done: RoutedDone, how: Any, seconds: float) -> list[RoutedEvent]:
    """Return the events of a kept answer: it cost nothing this time."""
    before = done.decision
    update = {
        "cache": how,
        "tried": [],
        "cost_usd": 0.0,
        "seconds": seconds,
        "saved_usd": None if before.saved_usd is None else before.saved_usd + before.cost_usd,
        "why": f"the answer was kept ({how}): {before.why}",
    }
    told = done.model_copy(
        update={
            "decision": before.model_copy(update=update),
            "first_token_seconds": seconds,
            "seconds": seconds,
        }
    )
    return [TextDelta(text=done.text), told] if done.text else [told]
