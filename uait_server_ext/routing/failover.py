"""One request's way through its plan: target after target, until one has answered.

::

    failed before its text was given   the next target or tier, at once
    failed after that                  `Failover` and a new answer, or the error; never a splice
    rejected by the verifier           the next escalation; its text was held back
    all failed                         one error that says why each did

A budget is asked before each call. What a call took is booked however it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import astuple, dataclass, field

from uait_server_ext.errors import (
    BudgetExceeded,
    Busy,
    CircuitOpen,
    DeadlineExceeded,
    InvalidInput,
    ModelUnavailable,
    NotFound,
    UaitError,
    UpstreamRefused,
)
from uait_server_ext.inference.models import ChatDone, ChatRequest, TextDelta, Usage

from .channel import Channel, Opened
from .models import (
    Amount,
    Attempt,
    AttemptRecord,
    Budgets,
    Caller,
    Decision,
    Failover,
    HeldAnswer,
    Plan,
    Price,
    Reservation,
    RoutedDone,
    RoutedEvent,
    Verdict,
)
from .providers.openai_wire import CHARACTERS_A_TOKEN

NOT_ASKED = (BudgetExceeded, Busy, CircuitOpen)
UNCHECKED = "The answer was not accepted by the check, and no other model could answer."


@dataclass(slots=True)
class Held:
    """A whole answer that its verifier did not accept."""

    attempt: Attempt
    channel: Channel
    events: list[TextDelta]
    done: ChatDone


@dataclass(slots=True)
class Course:
    """One request's way.

    Attributes:
        candidates: of each attempt, the channels that may serve it.
        restart: begin anew after the first token, and say so; else end with the error.
        estimate: the most that a call of that price can take.
    """

    plan: Plan
    candidates: list[tuple[Attempt, list[Channel]]]
    request: ChatRequest
    caller: Caller
    deadline: float | None = None
    restart: bool = True
    budgets: Budgets | None = None
    estimate: Callable[[ChatRequest, Price], Amount] | None = None
    hedge: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    tried: list[AttemptRecord] = field(default_factory=list)
    errors: list[UaitError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    async def run(self) -> AsyncGenerator[RoutedEvent, None]:
        """Yield the events of the answer; `RoutedDone` is the last.

        Raises:
            UaitError: nobody could answer.
        """
        held: Held | None = None
        given: Channel | None = None  # whose text the reader has, now void
        steps = list(self._steps())
        number = 0
        while number < len(steps):
            attempt, channel, others = steps[number]
            number += 1
            if held is not None and (attempt.role != "escalation" or attempt is held.attempt):
                continue
            if self.errors and isinstance(self.errors[-1], DeadlineExceeded):
                break
            call = Call(self, attempt, channel)
            opened = await call.open(number < len(steps), others)
            if opened is None:
                number += len(others)  # which were asked, too
                continue
            for place in range(number, number + len(others)):
                if steps[place][1] is call.channel:  # it won the race: the first can stand in
                    steps[place] = (attempt, channel, [])
            pieces: list[TextDelta] = []
            done: ChatDone | None = None
            async with aclosing(call.events(opened)) as events:
                async for event in events:
                    if isinstance(event, ChatDone):
                        done = event
                    elif attempt.verifier is not None:
                        pieces.append(event)
                    else:
                        if given is not None:
                            yield self._failover(given, call.channel)
                        given = None
                        call.heard = True
                        yield event
            if call.error is not None:
                if call.heard:
                    if not (self.restart and number < len(steps)):
                        raise call.error
                    given = call.channel
                continue
            assert done is not None
            if attempt.verifier is not None:
                verdict = await call.verified(done, pieces)
                if self.request.logprobs is None:  # they were for the verifier alone
                    pieces = [TextDelta(text=piece.text) for piece in pieces]
                if not verdict.accepted:
                    held = Held(attempt, call.channel, pieces, done)
                    continue
            if given is not None:
                yield self._failover(given, call.channel)
            for piece in pieces:
                yield piece
            yield self._done(attempt, call.channel, done)
            return
        if given is None and held is not None:
            self.notes.append(UNCHECKED)
            for piece in held.events:
                yield piece
            yield self._done(held.attempt, held.channel, held.done)
            return
        raise one_error(self.errors)

    def decision(self, attempt: Attempt, channel: Channel) -> Decision:
        """Return the record of what was decided, as it stands."""
        cost = sum(record.cost_usd for record in self.tried)
        baseline = self.plan.baseline
        saved = None
        if baseline is not None:
            used = next((r.usage for r in reversed(self.tried) if r.usage.completion_tokens), None)
            saved = None if used is None else baseline.price.cost(used) - cost
        return Decision(
            tier=attempt.tier.name,
            provider=channel.target.provider,
            model=channel.target.model,
            why=attempt.why or self.plan.why,
            task=self.plan.task,
            tried=self.tried,
            cost_usd=cost,
            seconds=time.monotonic() - self.began,
            saved_usd=saved,
            degraded=attempt.role == "fallback",
            notes=[*self.plan.notes, *self.notes],
        )

    def failed(self) -> Decision:
        """Return the record of a request that nobody answered."""
        attempt, channels = self.candidates[0]
        return self.decision(attempt, channels[0])

    def _steps(self) -> Iterator[tuple[Attempt, Channel, list[Channel]]]:
        """Yield each channel to be tried, with those of its tier that stand in for it."""
        for attempt, channels in self.candidates:
            hedged = attempt.tier.name in self.hedge and attempt.verifier is None
            for place, channel in enumerate(channels):
                yield attempt, channel, channels[1:] if hedged and not place else []

    def _done(self, attempt: Attempt, channel: Channel, done: ChatDone) -> RoutedDone:
        if attempt.role == "fallback":
            self.notes.append(
                f"{channel.target.id} answered, because what was wanted could not: "
                f"{self.errors[-1].detail if self.errors else 'nothing else was left.'}"
            )
        return RoutedDone(**vars(done), decision=self.decision(attempt, channel))

    def _failover(self, failed: Channel, to: Channel) -> Failover:
        why = self.errors[-1].detail if self.errors else ""
        self.notes.append(f"{failed.target.id} broke off; the answer was begun anew.")
        return Failover(failed=failed.target.id, to=to.target.id, why=why)


class Call:
    """One call of a plan: its budget, its record."""

    def __init__(self, course: Course, attempt: Attempt, channel: Channel) -> None:
        self.course = course
        self.attempt = attempt
        self.channel = channel
        self.error: UaitError | None = None
        self.heard = False
        verifier = attempt.verifier
        self.request = verifier.asks(course.request) if verifier else course.request
        self._calls = 1
        self._record: AttemptRecord | None = None
        self._reservation: Reservation | None = None

    async def open(self, hurry: bool, others: list[Channel]) -> Opened | None:
        """Begin the call, none where it cannot: then the record has the reason."""
        course = self.course
        began = time.monotonic()
        try:
            await self._reserve(times=1 + len(others))
            opened = (
                await self._hedged(others)
                if others
                else await self.channel.open(
                    self.request, course.caller, deadline=course.deadline, hurry=hurry
                )
            )
        except UaitError as error:
            seconds = time.monotonic() - began
            unused = isinstance(error, (InvalidInput, NotFound, UpstreamRefused, *NOT_ASKED))
            await self._settle(None if unused else Amount(calls=1, seconds=seconds))
            self._note("skipped" if isinstance(error, NOT_ASKED) else "failed", error, seconds)
            return None
        except BaseException:
            await self._settle(Amount(calls=1, seconds=time.monotonic() - began))
            raise
        self.channel = opened.channel
        return opened

    async def events(self, opened: Opened) -> AsyncGenerator[TextDelta | ChatDone, None]:
        """Yield the events of the call; keep a failure in `error`; book what it took."""
        done: ChatDone | None = None
        characters = 0
        try:
            async for event in opened:
                if isinstance(event, ChatDone):
                    done = event
                else:
                    characters += len(event.text)
                yield event
        except UaitError as error:
            self.error = error
        finally:
            await opened.close()
            usage = done.usage if done else self._guess(opened, characters)
            cost = self.channel.target.price.cost(usage)
            tokens = usage.prompt_tokens + usage.completion_tokens
            await self._settle(Amount(self._calls, tokens, cost, opened.seconds))
            record = self._note("answered" if done else "failed", self.error, opened.seconds)
            if not done and self.error is None:
                record.detail = "The reader went away."
            record.usage, record.cost_usd = usage, cost
            record.first_token_seconds = opened.first_token_seconds

    async def verified(self, done: ChatDone, pieces: list[TextDelta]) -> Verdict:
        """Ask the attempt's verifier about the answer; note what it found."""
        verifier, record = self.attempt.verifier, self._record
        assert verifier is not None
        assert record is not None
        logprobs = [token for piece in pieces for token in piece.logprobs or ()]
        answer = HeldAnswer(**vars(done), logprobs=logprobs)
        try:
            verdict = await verifier.verify(self.course.request, answer, self._again)
        except UaitError as error:
            verdict = Verdict(False, 0.0, type(verifier).__name__, error.detail)
            self.course.errors.append(error)
        record.score = verdict.score
        record.detail = f"{verdict.verifier}: {verdict.why}" if verdict.why else verdict.verifier
        if not verdict.accepted:
            record.outcome = "rejected"
        return verdict

    async def _again(self, request: ChatRequest) -> ChatDone:
        """Ask the same target once more; booked and recorded as a call of its own."""
        again = Call(self.course, self.attempt, self.channel)
        course = self.course
        began = time.monotonic()
        await again._reserve(request)
        try:
            opened = await self.channel.open(request, course.caller, deadline=course.deadline)
        except BaseException:
            await again._settle(Amount(calls=1, seconds=time.monotonic() - began))
            raise
        done: ChatDone | None = None
        async with aclosing(again.events(opened)) as events:
            async for event in events:
                if isinstance(event, ChatDone):
                    done = event
        if again.error is not None or done is None:
            raise again.error or ModelUnavailable("The model gave no second answer. Ask again.")
        return done

    async def _hedged(self, others: list[Channel]) -> Opened:
        """Open the channel, and the next one too where no token comes; the first to speak wins."""
        course = self.course
        waiting = [self.channel, *others]
        tasks: dict[asyncio.Task[Opened], Channel] = {}
        failure: Exception | None = None
        self._calls = 0
        try:
            while waiting or tasks:
                if waiting:
                    self._calls += 1
                    channel = waiting.pop(0)
                    hurry = bool(waiting)
                    opening = channel.open(
                        self.request, course.caller, deadline=course.deadline, hurry=hurry
                    )
                    tasks[asyncio.create_task(opening)] = channel
                patience = course.hedge[self.attempt.tier.name] if waiting else None
                ended, _ = await asyncio.wait(
                    tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED
                )
                for task in ended:
                    del tasks[task]
                    if (error := task.exception()) is None:
                        return task.result()
                    failure = error if isinstance(error, Exception) else failure
            assert failure is not None
            raise failure
        finally:
            await dropped(tasks)

    async def _reserve(self, request: ChatRequest | None = None, times: int = 1) -> None:
        course = self.course
        if course.budgets is not None and course.estimate is not None:
            tier, target = self.attempt.tier, self.channel.target
            price = target.price if times == 1 else tier.price
            most = course.estimate(request or course.request, price)
            if times > 1:
                most = Amount(*(part * times for part in astuple(most)))
            self._reservation = await course.budgets.reserve(course.caller, most)

    async def _settle(self, actual: Amount | None) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            await (reservation.release() if actual is None else reservation.settle(actual))

    def _guess(self, opened: Opened, characters: int) -> Usage:
        """Return about what a call took that was not ended."""
        prompt = sum(len(message.content) for message in self.course.request.messages)
        return Usage(
            prompt_tokens=prompt // CHARACTERS_A_TOKEN,
            completion_tokens=max(opened.pieces, characters // CHARACTERS_A_TOKEN),
        )

    def _note(self, outcome: str, error: UaitError | None, seconds: float) -> AttemptRecord:
        target = self.channel.target
        self._record = AttemptRecord.model_validate(
            {
                "tier": self.attempt.tier.name,
                "provider": target.provider,
                "model": target.model,
                "why": self.attempt.why,
                "outcome": outcome,
                "detail": error.detail if error else None,
                "seconds": seconds,
            }
        )
        self.course.tried.append(self._record)
        if error is not None:
            self.course.errors.append(error)
            self.error = error
        return self._record


async def dropped(tasks: dict[asyncio.Task[Opened], Channel]) -> None:
    """End openings that nobody waits for any more."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is None:
            await task.result().close()


def one_error(errors: list[UaitError]) -> UaitError:
    """Return the one error of a request that nobody answered."""
    if errors and (len(errors) == 1 or isinstance(errors[-1], DeadlineExceeded)):
        return errors[-1]
    told = " ".join(dict.fromkeys(error.detail for error in errors))
    waits = [wait for e in errors if (wait := e.extensions.get("retry_after")) is not None]
    kept = {"retry_after": min(waits)} if waits else {}
    for kind in (BudgetExceeded, Busy, InvalidInput):
        if errors and all(isinstance(error, kind) for error in errors):
            return type(errors[0])(told, **kept)
    return ModelUnavailable(f"No model could answer. {told}".strip(), **kept)
