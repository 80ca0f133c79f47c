"""The queue before a model: fair by caller, bounded, nobody lost and nobody served twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uait_server_ext.errors import Busy
from uait_server_ext.inference.turns import Turn, Turns

CALLERS = st.sampled_from(("ann", "bob", "cat", "dan"))
ACTIONS = st.one_of(
    st.tuples(st.just("arrive"), CALLERS, st.integers(0, 1)),
    st.tuples(st.just("end"), st.integers(0, 99), st.none()),
    st.tuples(st.just("leave"), st.integers(0, 99), st.none()),
    st.tuples(st.just("slots"), st.integers(1, 4), st.none()),
    st.tuples(st.just("alone"), st.none(), st.none()),
)


@dataclass(eq=False)
class Visit:
    """One request of the test."""

    caller: str
    priority: int
    state: str = "waiting"
    turn: Turn | None = None
    task: asyncio.Task[None] | None = None
    passed: list[Visit] = field(default_factory=list)


@dataclass
class Office:
    """Turns with visitors, and a check at each turn that it was that visitor's."""

    turns: Turns
    limit: int
    visits: list[Visit] = field(default_factory=list)
    served: list[Visit] = field(default_factory=list)
    holder: asyncio.Task[None] | None = None
    holds: bool = False
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, state: str) -> list[Visit]:
        return [visit for visit in self.visits if visit.state == state]

    def arrive(self, caller: str, priority: int) -> None:
        visit = Visit(caller, priority)
        self.visits.append(visit)
        visit.task = asyncio.create_task(self._visit(visit))

    async def _visit(self, visit: Visit) -> None:
        try:
            visit.turn = await self.turns.acquire(visit.caller, priority=visit.priority)
        except Busy:
            visit.state = "busy"
        else:
            self.check(visit)
            visit.state = "under way"
            self.served.append(visit)

    def check(self, visit: Visit) -> None:
        """No other who waits comes before this one by the rule."""
        assert visit.state == "waiting"  # nobody is served twice
        assert not self.holds
        under_way = Counter(other.caller for other in self.of("under way"))
        waiting = [other for other in self.of("waiting") if other is not visit]
        own = [other for other in self.served if other.caller == visit.caller]
        for other in waiting:
            assert other.priority >= visit.priority
            if other.priority > visit.priority:
                continue
            if other.caller == visit.caller:
                assert self.visits.index(other) > self.visits.index(visit)
                continue
            assert under_way[other.caller] >= under_way[visit.caller]
            # no caller is served twice while another waits who has no more under way
            since = self.served[self.served.index(own[-1]) :] if own else []
            twice = own and other in own[-1].passed
            twice = twice and other.caller not in {served.caller for served in since}
            assert not twice or under_way[other.caller] > under_way[visit.caller]
        visit.passed = [other for other in waiting if other.priority == visit.priority]

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)
        assert self.turns.under_way == len(self.of("under way"))
        assert self.turns.waiting == len(self.of("waiting")) <= self.limit
        assert self.turns.idle == (not self.of("under way") and not self.of("waiting"))

    def end(self, which: int) -> None:
        under_way = self.of("under way")
        if under_way:
            visit = under_way[which % len(under_way)]
            visit.state = "done"
            assert visit.turn
            visit.turn.release()
            visit.turn.release()  # does nothing

    def leave(self, which: int) -> None:
        waiting = self.of("waiting")
        if waiting:
            visit = waiting[which % len(waiting)]
            visit.state = "left"
            assert visit.task
            visit.task.cancel()

    def alone(self) -> None:
        """Ask for all slots; the next time give them back."""
        if self.holder is None:
            self.let_go.clear()
            self.holder = asyncio.create_task(self._hold())
        else:
            self.let_go.set()
            self.holder = None

    async def _hold(self) -> None:
        async with self.turns.alone():
            self.holds = True
            assert not self.of("under way")
            await self.let_go.wait()
            self.holds = False

    async def act(self, action: str, first: object, second: object) -> None:
        match action, first, second:
            case "arrive", str(caller), int(priority):
                self.arrive(caller, priority)
            case "end", int(which), _:
                self.end(which)
            case "leave", int(which), _:
                self.leave(which)
            case "slots", int(slots), _:
                self.turns.slots = max(slots, self.turns.slots)
            case _:
                self.alone()
        await self.settle()


@settings(deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40), limit=st.integers(1, 6))
def test_nobody_is_lost_passed_or_served_twice(
    actions: list[tuple[str, object, object]], limit: int
) -> None:
    async def main() -> None:
        office = Office(Turns("it", limit), limit)
        for action in actions:
            await office.act(*action)
        if office.holder is not None:
            await office.act("alone", None, None)
        while office.of("under way"):
            await office.act("end", 0, None)
        assert {visit.state for visit in office.visits} <= {"done", "left", "busy"}
        assert office.turns.idle

    asyncio.run(main())


@settings(deadline=None)
@given(
    crowd=st.lists(CALLERS, min_size=1, max_size=30),
    newcomer=CALLERS,
    limit=st.integers(2, 6),
)
def test_only_who_asks_for_as_much_as_others_is_refused(
    crowd: list[str], newcomer: str, limit: int
) -> None:
    """A full queue has a place for who waits with at least two requests fewer than another."""

    async def main() -> None:
        office = Office(Turns("it", limit), limit)
        await office.act("arrive", "first", 0)
        for caller in crowd:
            await office.act("arrive", caller, 0)
        waiting = Counter(visit.caller for visit in office.of("waiting"))
        full = waiting.total() == limit
        await office.act("arrive", newcomer, 0)
        refused = office.visits[-1].state == "busy"
        assert refused == (full and max(waiting.values()) <= waiting[newcomer] + 1)
        while office.of("under way"):
            await office.act("end", 0, None)

    asyncio.run(main())


def test_one_caller_s_flood_does_not_keep_another_waiting() -> None:
    order: list[str] = []

    async def main() -> None:
        turns = Turns("it", 100)
        first = await turns.acquire("flood")

        async def ask(caller: str) -> None:
            turn = await turns.acquire(caller)
            order.append(caller)
            await asyncio.sleep(0)
            turn.release()

        tasks = [asyncio.create_task(ask("flood")) for _ in range(20)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask(caller)) for caller in ("ann", "bob")]
        await asyncio.sleep(0)
        first.release()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order[:4] == ["flood", "ann", "bob", "flood"]


def test_a_flood_under_way_leaves_the_next_slot_to_another() -> None:
    async def main() -> None:
        turns = Turns("it", 100)
        turns.slots = 4
        held = [await turns.acquire("flood") for _ in range(4)]
        more = [asyncio.create_task(turns.acquire("flood")) for _ in range(4)]
        await asyncio.sleep(0)
        ann = asyncio.create_task(turns.acquire("ann"))
        await asyncio.sleep(0)
        held[0].release()
        async with asyncio.timeout(5):
            await ann
        assert not any(task.done() for task in more)
        for turn in [*held, await ann]:
            turn.release()
        await asyncio.gather(*more)

    asyncio.run(main())


def test_lower_priorities_go_first() -> None:
    order: list[str] = []

    async def take(turns: Turns, name: str, priority: int) -> None:
        turn = await turns.acquire(priority=priority)
        order.append(name)
        await asyncio.sleep(0)
        turn.release()

    async def main() -> None:
        turns = Turns("it", 10)
        first = await turns.acquire()
        waiting = [
            asyncio.create_task(take(turns, name, priority))
            for name, priority in (("b1", 1), ("b2", 1), ("a1", 0), ("a2", 0))
        ]
        await asyncio.sleep(0)
        first.release()
        await asyncio.gather(*waiting)

    asyncio.run(main())
    assert order == ["a1", "a2", "b1", "b2"]


def test_a_full_queue_says_busy_and_when_to_come_again() -> None:
    async def main() -> None:
        turns = Turns("it", 1)
        first = await turns.acquire()
        waiting = asyncio.create_task(turns.acquire())
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="1 requests wait") as caught:
            await turns.acquire()
        assert caught.value.extensions["retry_after"] >= 1
        unbounded = asyncio.create_task(turns.acquire(bounded=False))
        first.release()
        (await waiting).release()
        (await unbounded).release()
        assert turns.idle

    asyncio.run(main())


@pytest.mark.parametrize("released_first", [False, True])
def test_who_gives_up_waiting_does_not_keep_the_turn(released_first: bool) -> None:
    async def main() -> None:
        turns = Turns("it", 5)
        first = await turns.acquire()
        quitter = asyncio.create_task(turns.acquire())
        patient = asyncio.create_task(turns.acquire())
        await asyncio.sleep(0)
        if released_first:
            first.release()
            quitter.cancel()
        else:
            quitter.cancel()
            await asyncio.sleep(0)
            first.release()
        async with asyncio.timeout(1):
            await patient
        assert quitter.cancelled()
        assert turns.waiting == 0

    asyncio.run(main())
