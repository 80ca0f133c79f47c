"""Who may run beside whom."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from uait_server_ext.inference.backends.lanes import Lanes


def admitted(lanes: Lanes[str]) -> list[int]:
    numbers = []
    while (place := lanes.admit()) is not None:
        numbers.append(place.number)
    return numbers


def filled(*requests: dict[str, Any], streams: int = 4, room: int = 100) -> Lanes[str]:
    lanes: Lanes[str] = Lanes(streams, room)
    for number, request in enumerate(requests, start=1):
        lanes.add(number, f"item {number}", **request)
    return lanes


def test_requests_of_one_lane_run_together_up_to_the_number_of_streams() -> None:
    lanes = filled(*[{}] * 6)
    assert admitted(lanes) == [1, 2, 3, 4]
    assert (len(lanes), lanes.waiting) == (6, 2)
    lanes.release(2)
    assert admitted(lanes) == [5]


def test_another_adapter_waits_until_the_batch_has_drained_and_is_not_overtaken() -> None:
    lanes = filled({"lane": "a"}, {"lane": "a"}, {"lane": "b"}, {"lane": "a"})
    assert admitted(lanes) == [1, 2]
    lanes.release(1)
    assert admitted(lanes) == []
    lanes.release(2)
    assert admitted(lanes) == [3]
    lanes.release(3)
    assert admitted(lanes) == [4]


def test_who_runs_alone_has_nobody_beside() -> None:
    lanes = filled({}, {"alone": True}, {})
    assert admitted(lanes) == [1]
    lanes.release(1)
    assert admitted(lanes) == [2]
    lanes.release(2)
    assert admitted(lanes) == [3]


def test_together_they_take_no_more_than_the_room_but_one_may_always_run() -> None:
    lanes = filled({"tokens": 500}, {"tokens": 60}, {"tokens": 40}, {"tokens": 1})
    assert admitted(lanes) == [1]
    lanes.release(1)
    assert admitted(lanes) == [2, 3]


def test_who_withdraws_is_waited_for_no_more() -> None:
    lanes = filled({}, {"lane": "b"}, {})
    assert admitted(lanes) == [1]
    assert lanes.withdraw(2) == "item 2"
    assert lanes.withdraw(2) is None
    assert lanes.withdraw(1) is None
    assert admitted(lanes) == [3]


REQUESTS = st.fixed_dictionaries(
    {"lane": st.sampled_from("ab"), "alone": st.booleans(), "tokens": st.integers(0, 120)}
)


@given(requests=st.lists(REQUESTS, max_size=12), data=st.data())
def test_everyone_runs_once_in_order_and_beside_their_like(
    requests: list[dict[str, Any]], data: st.DataObject
) -> None:
    lanes = filled(*requests)
    order: list[int] = []
    running: list[int] = []
    while len(lanes):
        running += (new := admitted(lanes))
        order += new
        together = [requests[number - 1] for number in running]
        assert 1 <= len(together) <= 4
        assert len({one["lane"] for one in together}) == 1
        assert len(together) == 1 or not any(one["alone"] for one in together)
        assert len(together) == 1 or sum(one["tokens"] for one in together) <= 100
        lanes.release(running.pop(data.draw(st.integers(0, len(running) - 1))))
    assert order == list(range(1, len(requests) + 1))
