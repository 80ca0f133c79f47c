"""Measure how the server answers while it generates, and that it stays as it is for hours.

    python benchmarks/load.py [--quick] [--check]
    python benchmarks/load.py --soak MINUTES [--check]

A server of its own process with the embedded model. Eight clients stream answers without pause;
meanwhile 64 callers use about an operation a second each, and the server notes how late its event
loop is. The same is measured before, without the eight. ``--check`` fails where the lag's p99 or
the operations' p95 is over its limit.

``--soak`` mixes answers, cancelled answers, embeddings, questions to a collection, changes of it
and operations, and samples the server process: its memory must stay flat within 50 MB, and it must
hold no more file descriptors at the end than at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import psutil

from uait_server_ext.workflows.server import OwnServer, own_server

MOST_LAG_P99_SECONDS = 0.02
MOST_OPERATION_P95_SECONDS = 0.2
MOST_GROWTH_BYTES = 50 * 1024 * 1024
STREAMS = 8
CALLERS = 64
PAUSE_SECONDS = 1.0  # between two operations of a caller
SETTLE_SECONDS = 5.0
WARM_SHARE = 0.15  # of a soak, before what is measured: caches fill, models load
UNLIMITED = {"user": 10_000_000, "key": 10_000_000, "ip": 10_000_000}
CLASSES = ("read", "write", "inference", "ingest", "probe", "login")
OPERATIONS = ("/uait/v1/health", "/uait/v1/models", "/uait/v1/collections")
TOPICS = ("a lighthouse", "a river", "an old bridge", "the sea", "a small town", "a long winter")


class Client:
    """Just enough HTTP/1.1 for the load; what it takes itself is taken from the server."""

    def __init__(self, server: OwnServer) -> None:
        url = urlsplit(server.url)
        assert url.hostname
        assert url.port
        self._host, self._port = url.hostname, url.port
        self._token = server.token

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Any = None
    ) -> AsyncIterator[asyncio.StreamReader]:
        """Send a request and give the reader behind the answer's head."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            data = json.dumps(body).encode() if body is not None else b""
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
                f"Authorization: token {self._token}\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            writer.write(head.encode() + data)
            status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            if not status.startswith(b"2"):
                said = (await reader.read())[-500:].decode(errors="replace")
                raise RuntimeError(f"{method} {path}: {status.decode()} {said}")
            yield reader
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def lag(self) -> dict[str, list[float]]:
        """Return what the server noted of its event loop since the last time, in seconds."""
        noted: dict[str, list[float]] = json.loads(await self.call("GET", "/lag"))
        return noted

    async def call(self, method: str, path: str, body: Any = None) -> bytes:
        """Return the whole answer."""
        async with self._request(method, path, body) as reader:
            return await reader.read()

    async def stream(self, path: str, body: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of an answer."""
        async with self._request("POST", path, body) as reader:
            async for line in reader:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))


@dataclass
class Tally:
    """What was done."""

    done: Counter[str] = field(default_factory=Counter)
    pieces: int = 0
    seconds: list[float] = field(default_factory=list)


async def answer(client: Client, tally: Tally, max_tokens: int, stop_after: int = 0) -> None:
    """Stream one answer; leave after some pieces where that is asked for."""
    topic = random.choice(TOPICS)
    body = {
        "messages": [{"role": "user", "content": f"Tell a long story about {topic}."}],
        "max_tokens": max_tokens,
        "temperature": 0.8,
    }
    pieces = 0
    events = client.stream("/uait/v1/chat", body)
    try:
        async for event in events:
            pieces += 1
            if event["type"] == "delta":
                tally.pieces += 1
            elif event["type"] == "done":
                tally.done["answers"] += 1
            else:
                tally.done[f"answer ended: {event.get('code', event['type'])}"] += 1
            if stop_after and pieces >= stop_after:
                tally.done["cancelled answers"] += 1
                return
    finally:
        await events.aclose()  # type: ignore[attr-defined]  # it is a generator


async def operate(client: Client, tally: Tally) -> None:
    """Use operations as people and programs do, with pauses."""
    await asyncio.sleep(random.random() * PAUSE_SECONDS)
    for path in OPERATIONS:
        began = time.perf_counter()
        await client.call("GET", path)
        tally.seconds.append(time.perf_counter() - began)
        tally.done["operations"] += 1
        await asyncio.sleep(PAUSE_SECONDS)


async def until(ends: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again."""
    while time.monotonic() < ends:
        await work()


async def measure(
    client: Client, streams: int, seconds: float
) -> tuple[dict[str, list[float]], Tally]:
    """Return what was noted of the loop, and what was done meanwhile."""
    tally = Tally()
    ends = time.monotonic() + seconds
    answers = [
        asyncio.create_task(until(ends, lambda: answer(client, tally, 200))) for _ in range(streams)
    ]
    await asyncio.sleep(seconds / 5 if streams else 0)  # until all of them generate
    await client.lag()
    callers = [
        asyncio.create_task(until(ends, lambda: operate(client, tally))) for _ in range(CALLERS)
    ]
    await asyncio.gather(*callers)
    noted = await client.lag()
    for task in answers:
        task.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
    return noted, tally


def shown(name: str, noted: dict[str, list[float]], tally: Tally) -> tuple[float, float]:
    """Print one phase; return the lag's p99 and the operations' p95."""
    lag, spent = quantiles(noted["late"], n=100), quantiles(tally.seconds, n=100)
    print(
        f"{name:12} {lag[49] * 1e3:8.1f} {lag[94] * 1e3:8.1f} {lag[98] * 1e3:8.1f} "
        f"{max(noted['steps'], default=0) * 1e3:13.1f} {spent[49] * 1e3:10.1f} "
        f"{spent[94] * 1e3:8.1f} {len(tally.seconds):8}"
    )
    return lag[98], spent[94]


async def responsiveness(server: OwnServer, seconds: float) -> bool:
    """Measure without and with answers; say whether the limits hold."""
    client = Client(server)
    await answer(client, Tally(), 5)  # loads the model
    before = await measure(client, 0, seconds)
    began = time.monotonic()
    during = await measure(client, STREAMS, seconds)
    spent = time.monotonic() - began
    print(
        f"{'ms':12} {'lag p50':>8} {'p95':>8} {'p99':>8} {'longest step':>13} {'op. p50':>10} "
        f"{'p95':>8} {'calls':>8}"
    )
    shown("no answers", *before)
    lag, operation = shown(f"{STREAMS} streams", *during)
    print(f"{during[1].pieces / spent:.0f} pieces of text a second; {dict(during[1].done)}")
    print(
        f"event-loop lag p99 {lag * 1e3:.1f} ms (limit {MOST_LAG_P99_SECONDS * 1e3:.0f}), "
        f"operation p95 {operation * 1e3:.0f} ms (limit {MOST_OPERATION_P95_SECONDS * 1e3:.0f})"
    )
    return lag <= MOST_LAG_P99_SECONDS and operation <= MOST_OPERATION_P95_SECONDS


async def soak(server: OwnServer, folder: Path, minutes: float) -> bool:
    """Load the server for long; say whether it stayed as it was."""
    client, tally = Client(server), Tally()
    process = psutil.Process(server.pid)
    samples: list[tuple[float, int, int]] = []

    async def sample() -> None:
        memory, files = process.memory_info().rss, process.num_fds()
        workers = sum(child.memory_info().rss for child in process.children(recursive=True))
        samples.append((time.monotonic() - began, memory, files))
        print(
            f"{samples[-1][0] / 60:6.1f} min  {memory / 1e6:7.1f} MB  {files:4} files  "
            f"workers {workers / 1e6:7.1f} MB  {tally.pieces} pieces  {dict(tally.done)}",
            flush=True,
        )

    async def change() -> None:
        """Ingest a document, search and ask for it; forget the collection at times."""
        number = tally.done["documents"]
        path = folder / f"report-{number % 20}.md"
        path.write_text(
            "\n\n".join(
                f"# {topic} {number}\n\nReport {number} tells of {topic}: it is {n + number} "
                "metres long and was first measured by surveyors in the spring."
                for n, topic in enumerate(TOPICS * 3)
            )
        )
        async for _ in client.stream("/uait/v1/collections/soak/ingest", {"path": str(path)}):
            pass
        await client.call("POST", "/uait/v1/collections/soak/search", {"query": "a bridge"})
        async for _ in client.stream(
            "/uait/v1/collections/soak/ask", {"question": "How long is the river?"}
        ):
            pass
        tally.done["documents"] += 1
        if tally.done["documents"] % 50 == 0:
            await client.call("DELETE", "/uait/v1/collections/soak")
        await asyncio.sleep(1)

    began = time.monotonic()
    seconds = minutes * 60
    first: tuple[float, int, int] | None = None
    for share, last in ((WARM_SHARE, False), (1 - WARM_SHARE, True)):
        at = time.monotonic() + seconds * share
        load = [
            *(until(at, lambda: answer(client, tally, random.randint(5, 150))) for _ in range(4)),
            until(at, lambda: answer(client, tally, 500, stop_after=random.randint(1, 30))),
            until(at, change),
            *(until(at, lambda: operate(client, tally)) for _ in range(8)),
        ]
        tasks = asyncio.gather(*load)
        while not tasks.done():
            await asyncio.wait([tasks], timeout=max(5.0, minutes))
            await sample()
        tasks.result()
        await asyncio.sleep(SETTLE_SECONDS)  # connections close, the log is written
        await sample()
        if not last:
            first = samples[-1]
    assert first is not None
    growth, files = samples[-1][1] - first[1], samples[-1][2] - first[2]
    highest = max(memory for at, memory, _ in samples if at >= first[0]) - first[1]
    bad = [what for what in tally.done if what.startswith("answer ended")]
    print(f"{tally.pieces} pieces of text, {dict(tally.done)}")
    print(
        f"{minutes:g} minutes: memory {growth / 1e6:+.1f} MB, at most {highest / 1e6:+.1f} MB "
        f"(limit {MOST_GROWTH_BYTES / 1e6:.0f}), file descriptors {files:+}"
    )
    return highest <= MOST_GROWTH_BYTES and files <= 0 and not bad


def main() -> None:
    """Measure, print, and judge with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="uait-bench-") as name:
        folder = Path(name).resolve()
        traits = {
            "data_dir": str(folder / "state"),
            "knowledge_roots": [str(folder)],
            "rate_limits": dict.fromkeys(CLASSES, UNLIMITED),
            "model_queue": 64,
        }
        extensions = "{'uait_server_ext': True, 'lag_extension': True}"
        arguments = [f"--ServerApp.jpserver_extensions={extensions}"]
        with own_server(
            folder, options=traits, arguments=arguments, environment={"PYTHONPATH": path}
        ) as server:
            if options.soak:
                held = asyncio.run(soak(server, folder, options.soak))
            else:
                held = asyncio.run(responsiveness(server, 8.0 if options.quick else 30.0))
    if options.check and not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
