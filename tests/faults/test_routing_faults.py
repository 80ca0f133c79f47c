"""What a caller sees of each fault of a model's provider, with one provider and with two.

    pytest tests/faults/test_routing_faults.py -s     # prints the table

Each cell sends requests while one provider has the fault. A request must end right, or with a
clear error: it must never hang, and never end well with a text that is not an answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.inference.conftest import LOG
from tests.unit.routing.mock_provider import MockProvider, answer_to
from tests.unit.routing.world import ADA, ask, last, run, text_of
from uait_server_ext.errors import UaitError
from uait_server_ext.inference.models import ChatRequest
from uait_server_ext.routing.config import parse, routing_of
from uait_server_ext.routing.models import RoutedEvent
from uait_server_ext.routing.providers import Provider
from uait_server_ext.routing.providers.local import LocalProvider
from uait_server_ext.routing.providers.openai_http import OpenAIProvider
from uait_server_ext.routing.service import Router

REQUESTS = 12
HUNG_SECONDS = 30.0
PATIENCE = 0.4
FAULTS = {
    "outage (refused)": "refused",
    "outage (reset)": "reset",
    "outage (500)": "500",
    "silent": "hang",
    "slow to the first token": "slow:20",
    "429": "429:30",
    "wrong JSON": "garble:0",
    "no JSON (a proxy's page)": "html",
    "cut mid-stream": "cut:2",
    "ended mid-stream": "end:2",
    "error mid-stream": "error:2",
    "stalled mid-stream": "stall:2",
    "DNS failure": "dns",
    "out of memory": "oom",
    "key refused": "401",
    "every second call fails": "500|ok",
    "every second call is cut": "cut:2|ok",
}
PROVIDER = """
[providers.{name}]
url = "{url}"
first_token_seconds = {patience}
idle_seconds = {patience}
attempts = 2
[providers.{name}.models.m]
"""
TABLE: dict[str, dict[int, Counter[str]]] = {}


@dataclass
class Ended:
    """How one request ended."""

    right: str
    events: list[RoutedEvent]
    error: BaseException | None = None

    def word(self) -> str:
        """Say it in a word of the table."""
        if isinstance(self.error, TimeoutError):
            return "hung"
        if self.error is not None:
            told = isinstance(self.error, UaitError) and len(self.error.detail) > 20
            return "clear error" if told else "unclear error"
        done = last(self.events)
        whole = {answer_to({"messages": [{"content": self.right}]}, who) for who in ("one", "two")}
        whole |= {self.right}
        same = done.text == text_of(self.events)
        return "right" if same and done.text in whole else "silently wrong"


async def send(router: Router, request: ChatRequest) -> Ended:
    """Send a request, as a reader who obeys `Failover`."""
    ended = Ended(request.messages[-1].content, [])
    try:
        async with asyncio.timeout(HUNG_SECONDS):
            async for event in router.chat(request, ADA):
                ended.events.append(event)
    except (TimeoutError, Exception) as error:
        ended.error = error
    return ended


async def cell(fault: str, providers: int) -> Counter[str]:
    """Send requests while the first provider has a fault."""
    mocks = [MockProvider(name) for name in ("one", "two")[:providers]]
    for mock in mocks:
        await mock.__aenter__()
    urls = [mock.url for mock in mocks]
    if fault == "dns":
        urls[0] = "https://no-such-host.invalid/v1"
    elif fault == "refused":
        await mocks[0].__aexit__()
    elif "|" in fault:
        mocks[0].script.extend(fault.split("|") * REQUESTS * 2)
    else:
        mocks[0].usual = fault
    names = [mock.who for mock in mocks]
    text = "".join(
        PROVIDER.format(name=name, url=url, patience=PATIENCE)
        for name, url in zip(names, urls, strict=True)
    )
    text += f'\n[[tiers]]\nname = "t"\nmodels = {[f"{name}/m" for name in names]}\n'
    routing = routing_of(parse(text + "[failover]\nlocal = false\n"))
    made: dict[str, Provider] = {n: OpenAIProvider(n, routing.provider(n)) for n in names}
    router = Router(NoLocal(), made, routing)
    try:
        one_by_one = [await send(router, ask(f"q{n}")) for n in range(REQUESTS // 2)]
        together = await asyncio.gather(
            *(send(router, ask(f"q{n}", temperature=0.0)) for n in range(REQUESTS // 2))
        )
    finally:
        await router.stop()
        for mock in mocks:
            await mock.__aexit__()
    return Counter(ended.word() for ended in (*one_by_one, *together))


class NoLocal:
    """No models on this machine."""

    def check(self, model: str) -> None:
        raise AssertionError

    def chat(self, request: ChatRequest, *, caller: str = "") -> Any:
        raise AssertionError


@pytest.mark.parametrize("name", FAULTS)
def test_every_request_ends_right_or_with_a_clear_error(name: str) -> None:
    alone = run(cell(FAULTS[name], 1))
    both = run(cell(FAULTS[name], 2))
    TABLE[name] = {1: alone, 2: both}
    assert set(alone) <= ({"right", "clear error"} if "|" in FAULTS[name] else {"clear error"})
    # The second provider is well: nobody sees the fault of the first.
    assert both == {"right": REQUESTS}, both


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker through /proc")
def test_a_killed_worker_ends_requests_right_or_with_a_clear_error(tmp_path: Path) -> None:
    """The local model's worker is killed while it answers; alone, and with a provider beside it."""
    for providers in (1, 2):
        counted = run(killed(tmp_path, providers))
        TABLE.setdefault("worker kill -9", {})[providers] = counted
        assert set(counted) <= {"right", "clear error"}, counted
        if providers == 2:
            assert counted["right"] == sum(counted.values()), counted


async def killed(folder: Path, providers: int) -> Counter[str]:
    from uait_server_ext.inference.cache import ModelCache
    from uait_server_ext.inference.catalogue import Catalogue
    from uait_server_ext.inference.service import Inference

    entries = [
        entry.model_copy(update={"delay_seconds": 0.05}) if entry.id == "echo" else entry
        for entry in Catalogue.load().entries
    ]
    inference = Inference(cache=ModelCache(folder), catalogue=Catalogue(entries), log=LOG)
    async with MockProvider("two") as mock:
        text = PROVIDER.format(name="two", url=mock.url, patience=5)
        models = ["local/echo", "two/m"][:providers]
        text += f'\n[[tiers]]\nname = "t"\nmodels = {models}\n[failover]\nlocal = false\n'
        routing = routing_of(parse(text))
        made: dict[str, Provider] = {
            "local": LocalProvider(inference),
            "two": OpenAIProvider("two", routing.provider("two")),
        }
        router = Router(inference, made, routing)
        try:
            counted: Counter[str] = Counter()
            await send(router, ask("warm"))
            for number in range(3):
                words = " ".join(f"w{n}" for n in range(12))
                sent = [
                    asyncio.create_task(send(router, ask(f"q{number}{n} {words}")))
                    for n in range(3)
                ]
                await asyncio.sleep(0.2)
                for pid in children(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                counted.update(ended.word() for ended in await asyncio.gather(*sent))
            return counted
        finally:
            await router.stop()
            await inference.stop()


def children(pid: int) -> list[int]:
    """Return the model workers below a process (Linux)."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"inference.worker" in command:
                found.append(int(child))
    return found


@pytest.fixture(scope="module", autouse=True)
def table() -> Any:
    """Print the table when all cells are known."""
    yield
    print("\n\n" + table_of(TABLE))


def table_of(cells: dict[str, dict[int, Counter[str]]]) -> str:
    """Return the table in Markdown."""
    words = ("right", "clear error", "hung", "silently wrong")
    heads = [f"{word}, {n}" for n in ("alone", "of two") for word in words]
    lines = [f"| fault | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for fault, by_number in cells.items():
        counts = [str(by_number.get(n, Counter())[word]) for n in (1, 2) for word in words]
        lines.append(f"| {fault} | {' | '.join(counts)} |")
    return "\n".join(lines)
