"""What the router does when all is well, and what when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.routing.mock_provider import answer_to
from tests.unit.routing.world import ADA, BEN, World, ask, last, run, text_of
from uait_server_ext.errors import (
    BudgetExceeded,
    Busy,
    CircuitOpen,
    ContextTooLong,
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    StreamCut,
    UaitError,
    UpstreamFailed,
    UpstreamRefused,
    WorkerDied,
)
from uait_server_ext.inference.models import ChatDone, ChatRequest, TextDelta, ToolDefinition
from uait_server_ext.routing.models import (
    Again,
    Amount,
    Attempt,
    Caller,
    Decision,
    Failover,
    Plan,
    Price,
    Target,
    Tier,
    Verdict,
)

NO_LOCAL = "\n[failover]\nlocal = false\n"
HELLO = "one answers hello word0 word1 word2 word3"


def failing(world: World, request: ChatRequest, caller: Caller = ADA) -> UaitError:
    async def go() -> UaitError:
        async with world:
            with pytest.raises(UaitError) as caught:
                await world.ask(request, caller)
            return caught.value

    return run(go())


def test_without_a_file_the_models_of_this_machine_answer() -> None:
    async def go() -> None:
        async with World() as world:
            done = await world.ask(ask())
            assert done.text == "local answers hello"
            assert done.model == "small"
            assert done.decision.provider == "local"
            assert done.decision.cost_usd == 0
            assert world.local.requests[0].model == "auto"
            assert world.local.callers == ["user_ada"]
            await world.ask(ask(model="small"))
            assert world.local.requests[1].model == "small"
            with pytest.raises(ModelNotFound):
                world.router.check("smoll")
            with pytest.raises(ModelNotFound):
                await world.ask(ask(model="nowhere/m"))

    run(go())


def test_an_answer_says_who_gave_it_why_and_at_what_price() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL) as world:
            events = await world.events(ask())
            done = last(events)
            assert text_of(events) == done.text == HELLO
            decision = done.decision
            assert (decision.tier, decision.provider, decision.model) == ("large", "one", "m")
            assert decision.why
            assert decision.cost_usd == pytest.approx((10 * 1.0 + 7 * 2.0) / 1e6)
            assert [record.outcome for record in decision.tried] == ["answered"]
            assert not decision.degraded

    run(go())


def test_what_failed_before_its_first_token_is_tried_again() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL, attempts=3) as world:
            world.mocks["one"].script.extend(["500", "503", "ok"])
            assert (await world.ask(ask())).text == HELLO
            assert len(world.mocks["one"].calls) == 3

    run(go())


def test_retry_after_is_honoured() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL, attempts=2) as world:
            world.mocks["one"].script.extend(["429:1", "ok"])
            began = time.monotonic()
            assert (await world.ask(ask())).text == HELLO
            assert time.monotonic() - began >= 1

    run(go())


def test_a_retry_after_that_is_too_long_is_told_instead_of_waited() -> None:
    world = World("one", rest=NO_LOCAL, attempts=3)
    world.mocks["one"].script.append("429:3600")
    error = failing(world, ask())
    assert isinstance(error, Busy)
    assert error.extensions["retry_after"] == 3600
    assert len(world.mocks["one"].calls) == 1


def test_no_wait_goes_past_the_deadline() -> None:
    world = World("one", rest=NO_LOCAL, attempts=3)
    world.mocks["one"].script.extend(["429:5", "ok"])
    began = time.monotonic()
    assert isinstance(failing(world, ask(deadline_seconds=1.0)), Busy)
    assert time.monotonic() - began < 4


def test_before_the_first_token_the_next_target_answers_at_once() -> None:
    async def go() -> None:
        async with World("one", "two", rest=NO_LOCAL, attempts=3) as world:
            world.mocks["one"].usual = "500"
            events = await world.events(ask())
            assert not any(isinstance(event, Failover) for event in events)
            done = last(events)
            assert done.text.startswith("two answers")
            assert [r.outcome for r in done.decision.tried] == ["failed", "answered"]
            assert "500" in (done.decision.tried[0].detail or "")
            assert len(world.mocks["one"].calls) == 1

    run(go())


@pytest.mark.parametrize("fault", ["cut:2", "end:2", "garble:2", "error:2", "stall:2"])
def test_after_the_first_token_the_switch_is_told_and_the_text_begins_anew(fault: str) -> None:
    async def go() -> None:
        async with World("one", "two", rest=NO_LOCAL, patience=0.5) as world:
            world.mocks["one"].usual = fault
            events = await world.events(ask())
            (switch,) = (event for event in events if isinstance(event, Failover))
            assert (switch.failed, switch.to) == ("one/m", "two/m")
            assert switch.why
            done = last(events)
            assert done.text == text_of(events) == HELLO.replace("one", "two")
            assert any("anew" in note for note in done.decision.notes)

    run(go())


@pytest.mark.parametrize("fault", ["cut:2", "end:2", "error:2"])
def test_a_cut_answer_of_the_only_provider_is_an_error(fault: str) -> None:
    world = World("one", rest=NO_LOCAL, attempts=3)
    world.mocks["one"].usual = fault
    assert isinstance(failing(world, ask()), StreamCut)
    assert len(world.mocks["one"].calls) == 1


def test_a_reader_that_knows_no_failover_gets_the_error() -> None:
    async def go() -> None:
        async with World("one", "two", rest=NO_LOCAL) as world:
            world.mocks["one"].usual = "cut:2"
            events = world.router.bound(ADA).chat(ask())
            heard = ""
            while not heard.endswith("answers"):
                event = await anext(events)
                assert isinstance(event, TextDelta)
                heard += event.text
            assert heard == "one answers"
            with pytest.raises(StreamCut):
                await anext(events)
            assert not world.mocks["two"].calls

    run(go())


def test_a_tool_call_comes_whole() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL) as world:
            world.mocks["one"].usual = "tool"
            done = await world.ask(ask(tools=[ToolDefinition(name="add")]))
            assert done.finish_reason == "tool_calls"
            (call,) = done.tool_calls
            assert (call.id, call.name, call.arguments) == ("call_1", "add", '{"a": 1}')

    run(go())


def test_what_no_model_can_do_is_refused_by_its_name() -> None:
    error = failing(World("one", rest=NO_LOCAL), ask(top_k=5, model="one/m"))
    assert isinstance(error, InvalidInput)
    assert "top_k" in error.detail
    assert isinstance(failing(World("one", rest=NO_LOCAL), ask(logprobs=2)), InvalidInput)


def test_words_that_may_not_leave_do_not_leave() -> None:
    caller = replace(ADA, reach="local")
    world = World("one", rest=NO_LOCAL, privacy="private")
    assert isinstance(failing(world, ask(), caller), InvalidInput)
    assert isinstance(failing(world, ask(model="one/m"), caller), InvalidInput)
    assert not world.mocks["one"].calls

    async def go() -> None:
        async with World("one", privacy="private") as world:
            done = await world.ask(ask(), caller)
            assert done.decision.provider == "local"
            assert done.decision.degraded
            assert not world.mocks["one"].calls

    run(go())


def test_auto_falls_back_to_this_machine_with_a_note_and_a_named_model_does_not() -> None:
    async def go() -> None:
        async with World("one") as world:
            world.mocks["one"].usual = "500"
            done = await world.ask(ask())
            assert done.text == "local answers hello"
            assert done.decision.degraded
            assert any("500" in note for note in done.decision.notes)
            with pytest.raises(UpstreamFailed):
                await world.ask(ask(model="one/m"))

    run(go())


def test_the_breaker_of_the_only_provider_opens_and_a_probe_closes_it() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL, open_seconds=0.3) as world:
            mock = world.mocks["one"]
            mock.usual = "500"
            for _ in range(4):
                with pytest.raises(UpstreamFailed):
                    await world.ask(ask())
            with pytest.raises(CircuitOpen) as caught:
                await world.ask(ask())
            assert caught.value.extensions["retry_after"] >= 1
            assert len(mock.calls) == 4
            assert "one/m (open)" in world.router.state()[0].detail
            await asyncio.sleep(0.35)
            mock.usual = "ok"
            assert (await world.ask(ask())).text == HELLO
            assert world.router.state()[0].detail == ""

    run(go())


def test_bad_requests_do_not_open_the_breaker() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL) as world:
            world.mocks["one"].usual = "400"
            for _ in range(6):
                with pytest.raises(InvalidInput, match="scripted refusal"):
                    await world.ask(ask())
            assert len(world.mocks["one"].calls) == 6

    run(go())


def test_a_key_that_is_not_taken_is_no_reason_to_try_again() -> None:
    world = World("one", rest=NO_LOCAL, attempts=3)
    world.mocks["one"].usual = "401"
    assert isinstance(failing(world, ask()), UpstreamRefused)
    assert len(world.mocks["one"].calls) == 1


def test_a_silent_provider_is_left_in_time_for_the_other() -> None:
    async def go() -> None:
        async with World("one", "two", rest=NO_LOCAL, patience=30.0) as world:
            world.mocks["one"].usual = "hang"
            done = await world.ask(ask(deadline_seconds=4.0))
            assert done.text.startswith("two answers")

    run(go())


def test_the_deadline_ends_an_answer() -> None:
    world = World("one", rest=NO_LOCAL, patience=30.0)
    world.mocks["one"].usual = "stall:2"
    began = time.monotonic()
    assert isinstance(failing(world, ask(deadline_seconds=0.5)), DeadlineExceeded)
    assert time.monotonic() - began < 10


def test_closing_the_answer_ends_the_call() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL) as world:
            mock = world.mocks["one"]
            mock.usual = "stall:2"
            for temperature in (0.0, 0.5):  # in a flight of its own, and without one
                events = world.router.chat(ask(temperature=temperature), ADA)
                await anext(events)
                assert mock.under_way == 1
                await events.aclose()
                for task in mock._tasks:
                    task.cancel()  # a server notices when it writes; this one only waits
                await asyncio.sleep(0.05)
                assert world.router.channel(world.routing.targets["one/m"]).in_flight == 0

    run(go())


def test_a_worker_that_dies_before_its_first_token_is_asked_once_more() -> None:
    async def go() -> None:
        async with World() as world:
            world.local.errors = [WorkerDied("the worker died")]
            assert (await world.ask(ask())).text == "local answers hello"
            assert len(world.local.requests) == 2

    run(go())


def test_a_hedged_tier_takes_the_first_who_speaks_and_ends_the_other() -> None:
    tiers = '\n[[tiers]]\nname = "t"\nmodels = ["one/m", "two/m"]\nhedge_seconds = 0.1\n'

    async def go() -> None:
        async with World("one", "two", rest=tiers + NO_LOCAL) as world:
            world.mocks["one"].usual = "slow:20"
            began = time.monotonic()
            done = await world.ask(ask())
            assert done.text.startswith("two answers")
            assert time.monotonic() - began < 10
            assert world.router.channel(world.routing.targets["one/m"]).in_flight == 0
            world.mocks["one"].usual = world.mocks["two"].usual = "500"
            with pytest.raises(ModelUnavailable):
                await world.ask(ask())

    run(go())


def test_a_provider_is_not_asked_more_than_its_limits_allow() -> None:
    limits = '\n[providers.one.models.few]\nname = "m"\nrequests_per_minute = 2\nconcurrent = 1\n'

    async def go() -> None:
        async with World("one", rest=limits + NO_LOCAL) as world:
            for _ in range(2):
                await world.ask(ask(model="one/few"))
            with pytest.raises(Busy) as caught:
                await world.ask(ask(model="one/few"))
            assert 0 < caught.value.extensions["retry_after"] <= 60

    run(go())


class Ledger:
    """Budgets that remember: at most so many calls."""

    def __init__(self, calls: int = 1 << 30) -> None:
        self.left = calls
        self.settled: list[Amount] = []
        self.released = 0

    async def reserve(self, caller: Caller, estimate: Amount) -> Ledger:
        if self.left < estimate.calls:
            raise BudgetExceeded("the budget of calls is used up")
        self.left -= estimate.calls
        return self

    async def settle(self, actual: Amount) -> None:
        self.settled.append(actual)

    async def release(self) -> None:
        self.released += 1
        self.left += 1


def estimate(request: ChatRequest, price: Price) -> Amount:
    return Amount(1, 100, price.output / 1e4)


def test_a_budget_is_asked_before_and_told_after_each_call() -> None:
    async def go() -> None:
        world = World("one", "two", rest=NO_LOCAL)
        ledger = Ledger(3)
        world.options = {"budgets": ledger, "estimate": estimate}
        async with world:
            world.mocks["one"].script.append("500")
            await world.ask(ask())
            assert [amount.calls for amount in ledger.settled] == [1, 1]
            assert ledger.settled[1].tokens == 17
            assert ledger.settled[1].usd == pytest.approx(24 / 1e6)
            await world.ask(ask())
            with pytest.raises(BudgetExceeded):
                await world.ask(ask())
            assert len(world.mocks["one"].calls) == 2

    run(go())


def test_a_call_that_its_reader_leaves_is_booked() -> None:
    async def go() -> None:
        world = World("one", rest=NO_LOCAL)
        ledger = Ledger()
        world.options = {"budgets": ledger, "estimate": estimate}
        async with world:
            world.mocks["one"].usual = "paced:0.05"
            events = world.router.chat(ask("x" * 400), ADA)
            await anext(events)
            await events.aclose()
            (amount,) = ledger.settled
            assert amount.calls == 1
            assert amount.tokens >= 100

    run(go())


class Words:
    """A verifier that wants a word, and asks for a second sample where it is told to."""

    def __init__(self, word: str, again: bool = False) -> None:
        self.word = word
        self.again = again

    def asks(self, request: ChatRequest) -> ChatRequest:
        return request

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        if self.again:
            assert (await again(request)).text == answer.text
        return Verdict(self.word in answer.text, 0.5, "words", f"wants {self.word}")


class Fixed:
    """A policy that always has the same plan, and remembers what it saw."""

    def __init__(self, verifier: Words) -> None:
        self.verifier = verifier
        self.seen: list[Decision] = []

    def pinned(self, request: ChatRequest, caller: Caller) -> Caller:
        return caller

    def permit(self, request: ChatRequest, caller: Caller, target: Target) -> None:
        pass

    def plan(self, request: ChatRequest, caller: Caller, tiers: Sequence[Tier]) -> Plan:
        small, large = tiers
        attempts = (Attempt(small, "small first", verifier=self.verifier),)
        return Plan(
            (*attempts, Attempt(large, "it was rejected", "escalation")), "cascade", "t", large
        )

    def observe(self, plan: Plan, decision: Decision) -> None:
        self.seen.append(decision)


CASCADE = """
[[tiers]]
name = "small"
models = ["one/m"]
[[tiers]]
name = "large"
models = ["two/m"]
"""


def cascade(verifier: Words) -> World:
    world = World("one", "two", rest=CASCADE + NO_LOCAL)
    world.options = {"policy": Fixed(verifier)}
    return world


def test_a_rejected_answer_is_never_shown_and_the_stronger_tier_answers() -> None:
    async def go() -> None:
        async with cascade(Words("two", again=True)) as world:
            events = await world.events(ask())
            done = last(events)
            assert text_of(events) == done.text == HELLO.replace("one", "two")
            decision = done.decision
            assert [r.outcome for r in decision.tried] == ["rejected", "answered", "answered"]
            assert decision.tried[0].score == 0.5
            assert decision.tier == "large"
            assert decision.cost_usd == pytest.approx(3 * 24 / 1e6)
            assert decision.saved_usd == pytest.approx(-2 * 24 / 1e6)
            assert world.options["policy"].seen == [decision]

    run(go())


def test_an_accepted_answer_saves_the_stronger_tier() -> None:
    async def go() -> None:
        async with cascade(Words("one")) as world:
            done = await world.ask(ask())
            assert done.decision.tier == "small"
            assert not world.mocks["two"].calls

    run(go())


def test_a_rejected_answer_is_given_with_a_note_where_nobody_else_can_answer() -> None:
    async def go() -> None:
        async with cascade(Words("two")) as world:
            world.mocks["two"].usual = "500"
            done = await world.ask(ask())
            assert done.text == HELLO
            assert any("not accepted" in note for note in done.decision.notes)
            world.mocks["one"].usual = "500"
            with pytest.raises(ModelUnavailable, match="No model could answer"):
                await world.ask(ask())
            assert [r.outcome for r in world.options["policy"].seen[-1].tried] == ["failed"] * 2

    run(go())


def test_a_prompt_that_is_too_long_for_one_goes_to_the_next() -> None:
    async def go() -> None:
        tiers = '\n[[tiers]]\nname = "t"\nmodels = ["local/small", "one/m"]\n'
        async with World("one", rest=tiers) as world:
            world.local.errors = [ContextTooLong("4 of 3 tokens")]
            assert (await world.ask(ask())).text == HELLO

    run(go())


def test_equal_requests_of_one_person_are_one_call_and_one_cost() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL) as world:
            mock = world.mocks["one"]
            mock.usual = "slow:0.3"
            asked = ask(temperature=0.0)
            dones = await asyncio.gather(*(world.ask(asked) for _ in range(5)))
            assert len(mock.calls) == 1
            assert {done.text for done in dones} == {HELLO}
            assert sorted(done.decision.shared for done in dones) == [False, True, True, True, True]
            assert sum(done.decision.cost_usd for done in dones) == pytest.approx(24 / 1e6)
            await asyncio.gather(world.ask(asked), world.ask(asked, BEN), world.ask(ask()))
            assert len(mock.calls) == 4

    run(go())


def test_a_shared_call_goes_on_while_one_still_reads() -> None:
    async def go() -> None:
        async with World("one", rest=NO_LOCAL) as world:
            world.mocks["one"].usual = "paced:0.05"
            asked = ask(temperature=0.0)
            first = world.router.chat(asked, ADA)
            await anext(first)
            second = asyncio.create_task(world.ask(asked))
            await asyncio.sleep(0.02)
            await first.aclose()
            assert (await second).text == HELLO
            assert len(world.mocks["one"].calls) == 1

    run(go())


def test_the_mock_gives_the_answer_that_the_tests_expect() -> None:
    assert answer_to({"messages": [{"content": "hello"}]}, "one") == HELLO
