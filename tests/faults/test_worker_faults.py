"""A model worker that is killed, stopped or starved while many use it: no request hangs or lies."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.unit.inference.conftest import LOG
from tests.unit.inference.test_worker import asked, workers
from uait_server_ext.errors import UaitError
from uait_server_ext.inference import process, runner
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.models import ChatDone
from uait_server_ext.inference.service import Inference

REQUESTS = 60
FAULTS: dict[str, Callable[[psutil.Process], object]] = {
    "kill -9": lambda worker: worker.send_signal(signal.SIGKILL),
    "segmentation fault": lambda worker: worker.send_signal(signal.SIGSEGV),
    "out of memory": lambda worker: worker.rlimit(psutil.RLIMIT_AS, (1, 1)),
    "hangs": lambda worker: worker.send_signal(signal.SIGSTOP),
}


def service(root: Path) -> Inference:
    """Return a service with an echo that pauses before each word."""
    echo = Catalogue.load().get("echo").model_copy(update={"id": "slow", "delay_seconds": 0.02})
    catalogue = Catalogue([*Catalogue.load().entries, echo])
    return Inference(
        cache=ModelCache(root), catalogue=catalogue, queue_limit=REQUESTS, threads=1, log=LOG
    )


async def ask(inference: Inference, number: int, ended: Counter[str]) -> None:
    """Ask once as some caller; note how it ended."""
    text = " ".join(f"{number}-{n}" for n in range(random.randint(1, 30)))
    request = asked(text, "slow", deadline_seconds=20)
    try:
        async for event in inference.chat(request, caller=f"caller {number % 5}"):
            if isinstance(event, ChatDone):
                ended["right" if event.text == text else "wrong"] += 1
                return
        ended["silent end"] += 1
    except UaitError as error:
        ended["clear error" if error.detail else "empty error"] += 1


@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_ends_right_or_with_a_clear_error(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BACKOFF_SECONDS", (0.0,))
    monkeypatch.setattr(process, "CANCEL_SECONDS", 0.5)
    ended: Counter[str] = Counter()

    async def main() -> None:
        inference = service(tmp_path)
        tasks = [asyncio.create_task(ask(inference, n, ended)) for n in range(REQUESTS)]
        for task in tasks[::10]:  # some people leave
            asyncio.get_running_loop().call_later(1.5, task.cancel)
        for _ in range(2):
            await asyncio.sleep(random.uniform(1.0, 2.0))
            for worker in workers():
                FAULTS[fault](worker)
        async with asyncio.timeout(100):
            await asyncio.gather(*tasks, return_exceptions=True)
        left = sum(task.cancelled() for task in tasks)
        assert sum(ended.values()) + left == REQUESTS
        after: Counter[str] = Counter()
        for _ in range(3):  # one may meet a worker that hangs, the next may see it end
            await ask(inference, 1, after)
        assert after["right"] >= 1
        assert not any(stat.under_way or stat.waiting for stat in inference.statistics())
        await inference.stop()

    asyncio.run(main())
    print(fault, dict(ended))
    assert set(ended) <= {"right", "clear error"}
    assert ended["right"]
