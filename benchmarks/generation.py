"""Measure generation: UAIT on both backends beside mlx_lm's and llama.cpp's own servers.

    python benchmarks/generation.py [--quick] [--check] [--streams 1,4,8] [--stock]

All run the same weights: the embedded model as 16-bit GGUF or as 32-bit MLX weights, which hold the
same numbers. Each round asks every contender in turn: short questions on 1, 4 and 8 streams at once
(tokens a second, from the first request to the last token), a prompt of about 1,000 tokens that
none has seen, and another question after the same passages. UAIT is asked through its service,
queue and worker process included; the servers over HTTP. On a CPU mlx_lm.server gets the BLAS that
UAIT brings, without which it is several times slower: ``--stock`` shows it as installed, too.
``cpu ms`` is processor time for each token at the most streams; it hardly depends on what else runs
on the machine. Embeddings are passages of 128 tokens. ``--check`` fails below the floors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

import httpx
import psutil

from uait_server_ext.inference import machine
from uait_server_ext.inference.backends.llamacpp import FORM as GGUF_FORM
from uait_server_ext.inference.backends.mlx import FORM as MLX_FORM
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.environment import worker_environment
from uait_server_ext.inference.gguf_convert import HALF_FILE, to_half, to_mlx
from uait_server_ext.inference.models import ChatDone, ChatRequest, Message, TextDelta
from uait_server_ext.inference.service import Inference
from uait_server_ext.paths import default_model_cache

FLOOR_ONE = 0.95  # of the best peer, one stream
FLOOR_EIGHT = 1.5  # times mlx_lm.server, eight streams
FLOOR_PREFIX = 5.0  # times sooner, with the prefix known
MODEL = "smollm2-135m-instruct"
STOCK = "mlx_lm.server, stock"
PEERS = Path(__file__).with_name("generation_peers.py")
START_SECONDS = 180.0
SENTENCE = "The lighthouse of Port {n} was built in {year} and is {metres} metres high. "
PASSAGES = 64  # to be embedded, for each round
TOPICS = ("a ship", "a dragon", "a river", "a clock", "a garden", "a storm", "a train", "a city")


class Answer(NamedTuple):
    """What one answer took: seconds to its first token and to its end, and its tokens."""

    first: float
    end: float
    prompt: int
    made: int


class Contender(Protocol):
    """Somebody who answers."""

    async def ask(self, text: str, tokens: int) -> Answer:
        """Answer one question in so many tokens at most; times count from the call."""
        ...

    @property
    def process(self) -> psutil.Process:
        """The process that holds the model."""
        ...


@dataclass
class Figures:
    """What was measured of one contender; rates in tokens a second."""

    rate: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    prompt_rate: list[float] = field(default_factory=list)
    cpu: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: int = 0


class Uait:
    """UAIT's service with a model of its own."""

    def __init__(self, inference: Inference, model: str) -> None:
        self._inference = inference
        self._model = model
        self._worker = psutil.Process()

    async def ask(self, text: str, tokens: int) -> Answer:
        """Answer through the service."""
        began, first, done = time.monotonic(), 0.0, None
        request = ChatRequest(
            messages=[Message(role="user", content=text)], model=self._model, max_tokens=tokens
        )
        async with aclosing(self._inference.chat(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta) and not first:
                    first = time.monotonic() - began
                done = event
        assert isinstance(done, ChatDone)
        end = time.monotonic() - began
        usage = done.usage
        return Answer(first or end, end, usage.prompt_tokens, usage.completion_tokens)

    @property
    def process(self) -> psutil.Process:
        """The worker."""
        return self._worker

    async def embedded(self, count: int) -> float:
        """Return passages of about 128 tokens embedded in a second."""
        texts = [f"{n}. " + SENTENCE.format(n=n, year=1900, metres=20) * 6 for n in range(count)]
        embedder = self._inference.embedder
        await embedder.embed(texts[:4], purpose="ingest")
        began = time.monotonic()
        await embedder.embed(texts, purpose="ingest")
        return count / (time.monotonic() - began)

    async def load(self) -> None:
        """Load the model; note in which process."""
        known = set(psutil.Process().children())
        await self.ask("Hello.", 2)
        (self._worker,) = set(psutil.Process().children()) - known


class Server:
    """A server of OpenAI's wire format in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], client: httpx.AsyncClient) -> None:
        self._process = process
        self._client = client

    async def ask(self, text: str, tokens: int) -> Answer:
        """Answer over HTTP, streamed."""
        body = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first, usage = time.monotonic(), 0.0, {"prompt_tokens": 0, "completion_tokens": 0}
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                usage = event.get("usage") or usage
                choices = event.get("choices") or [{}]
                if not first and choices[0].get("delta", {}).get("content"):
                    first = time.monotonic() - began
        end = time.monotonic() - began
        return Answer(first or end, end, usage["prompt_tokens"], usage["completion_tokens"])

    @property
    def process(self) -> psutil.Process:
        """The server."""
        return psutil.Process(self._process.pid)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round, short answers")
    parser.add_argument("--check", action="store_true", help="fail below the floors")
    parser.add_argument("--streams", default="1,4,8", help="how many at once")
    parser.add_argument("--stock", action="store_true", help="with mlx_lm.server as installed")
    parser.add_argument("--rounds", type=int, help="instead of 5")
    options = parser.parse_args(arguments)
    streams = [int(number) for number in options.streams.split(",")]
    rounds, tokens = (1, 16) if options.quick else (5, 64)
    figures = asyncio.run(measure(options.rounds or rounds, tokens, streams, stock=options.stock))
    return report(figures, streams, check=options.check)


async def measure(
    rounds: int, tokens: int, streams: list[int], *, stock: bool
) -> dict[str, Figures]:
    """Start everybody, ask in turns, and return what was seen."""
    figures: dict[str, Figures] = {}
    async with AsyncExitStack() as stack:
        contenders = await started(stack, stock=stock)
        figures |= {name: Figures() for name in contenders}
        for number in range(rounds):
            for together in streams:
                for name, contender in contenders.items():
                    await run_streams(contender, figures[name], number, together, tokens)
                rates = [f"{name} {got.rate[together][-1]:.1f}" for name, got in figures.items()]
                print(f"round {number + 1}, tok/s x{together}: {', '.join(rates)}", flush=True)
            for name, contender in contenders.items():
                if name != STOCK:  # it would take a minute for each such prompt
                    await run_prefix(contender, figures[name], number)
        for name, contender in contenders.items():
            figures[name].memory = int(contender.process.memory_full_info().uss)
        ours = next(one for one in contenders.values() if isinstance(one, Uait))
        print(f"embeddings: {await ours.embedded(rounds * PASSAGES):.1f} passages a second")
    return figures


async def run_streams(
    contender: Contender, figures: Figures, number: int, together: int, tokens: int
) -> None:
    """Ask for so many stories at once."""
    questions = [
        f"Story {number}.{together}.{at}: tell me a long story about {TOPICS[at % len(TOPICS)]}."
        for at in range(together)
    ]
    began, worked = time.monotonic(), _cpu(contender.process)
    answers = await asyncio.gather(*(contender.ask(text, tokens) for text in questions))
    spent, worked = time.monotonic() - began, _cpu(contender.process) - worked
    made = sum(answer.made for answer in answers)
    figures.rate[together].append(made / spent)
    figures.cpu[together].append(1000 * worked / made)
    figures.first[together].append(median(answer.first for answer in answers))


async def run_prefix(contender: Contender, figures: Figures, number: int) -> None:
    """Ask twice after the same passages, which nobody has seen before."""
    ports = range(number * 40, number * 40 + 40)
    facts = "".join(SENTENCE.format(n=n, year=1800 + n, metres=n + 10) for n in ports)
    passages = f"Round {number}. {facts}"
    cold = await contender.ask(f"{passages}\nHow high is the first of them?", 4)
    warm = await contender.ask(f"{passages}\nWhen was the last of them built?", 4)
    figures.cold.append(cold.first)
    figures.warm.append(warm.first)
    figures.prompt_rate.append(cold.prompt / cold.first)


async def started(stack: AsyncExitStack, *, stock: bool) -> dict[str, Contender]:
    """Start every contender whose engine is installed here."""
    cache = ModelCache(default_model_cache())
    entry = Catalogue.load().get(MODEL)
    contenders: dict[str, Contender] = {}
    for backend, module in (("llamacpp", "xllamacpp"), ("mlx", "mlx_lm")):
        if machine.has_module(module):
            inference = Inference(
                cache=cache, catalogue=Catalogue.load(), log=logging.getLogger("benchmark")
            )
            stack.push_async_callback(inference.stop)
            await inference.pull(MODEL)
            ours = Uait(inference, f"{MODEL}@{backend}")
            await ours.load()
            contenders[f"UAIT, {backend}"] = ours
    if machine.has_module("xllamacpp"):
        half = cache.derived(entry, GGUF_FORM, to_half) / HALF_FILE
        contenders["llama.cpp server"] = await stack.enter_async_context(
            server("llamacpp", str(half))
        )
    if machine.has_module("mlx_lm"):
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        packed = str(cache.derived(entry, MLX_FORM, to_mlx))
        if machine.has_accelerator():
            peer = server("mlx", packed)
        else:
            wide = f"{scratch}/float32"
            await asyncio.to_thread(run, "unpack", packed, wide)
            peer = server("mlx-blas", wide, str(cache.root))
            if stock:
                contenders[STOCK] = await stack.enter_async_context(server("mlx", wide))
        contenders["mlx_lm.server"] = await stack.enter_async_context(peer)
    return contenders


def run(*arguments: str) -> None:
    """Let the peers' program do something and wait for it."""
    subprocess.run([sys.executable, str(PEERS), *arguments], check=True)


@asynccontextmanager
async def server(engine: str, model: str, *more: str) -> AsyncIterator[Server]:
    """Start a peer and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running([sys.executable, str(PEERS), engine, model, str(port), *more]) as process:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=START_SECONDS, trust_env=False
        ) as client:
            end = time.monotonic() + START_SECONDS
            while time.monotonic() < end and process.poll() is None:
                try:
                    (await client.get("/health")).raise_for_status()
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.2)
            else:
                raise RuntimeError(f"{engine} did not start")
            peer = Server(process, client)
            await peer.ask("Hello.", 2)
            yield peer


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the environment of our workers, and kill it in the end.

    On a busy machine that is worth more to the peers than to us: their threads would spin.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=worker_environment(threads=machine.default_threads()),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def report(figures: dict[str, Figures], streams: list[int], *, check: bool) -> int:
    """Print the table and the figures that matter; return the exit code."""
    rates = "".join(f"{f'tok/s x{number}':>11}" for number in streams)
    print(f"{'':22}{rates}{'cpu ms':>8}{'prompt/s':>10}{'first s':>9}{'known s':>9}{'MB':>7}")
    for name, got in figures.items():
        rates = "".join(f"{median(got.rate[number]):11.1f}" for number in streams)
        print(f"{name:22}{rates}{median(got.cpu[max(streams)]):8.1f}", end="")
        if got.cold:
            print(f"{median(got.prompt_rate):10.0f}{median(got.cold):9.2f}", end="")
            print(f"{median(got.warm):9.2f}", end="")
        else:
            print(" " * 28, end="")
        print(f"{got.memory / 1e6:7.0f}")
    for number in streams:
        said = ", ".join(f"{name} {median(x.first[number]):.2f}" for name, x in figures.items())
        print(f"first token of {number}, s: {said}")
    return judge(figures, streams, check=check)


def judge(figures: dict[str, Figures], streams: list[int], *, check: bool) -> int:
    """Print UAIT's ratios to its peers; return the exit code."""

    def ratio(number: int, ours: str, peers: Sequence[str]) -> float:
        """Return the median of the rounds' ratios to the best peer of each round."""
        rounds = zip(*(figures[name].rate[number] for name in peers), strict=True)
        mine = figures[ours].rate[number]
        return float(median(x / max(best) for x, best in zip(mine, rounds, strict=True)))

    uait = [name for name in figures if name.startswith("UAIT")]
    peers = [name for name in figures if name not in uait]
    default = uait[0] if not machine.has_accelerator() else uait[-1]
    for name in uait:
        for number in streams:
            beside = ", ".join(f"{ratio(number, name, [peer]):.2f} of {peer}" for peer in peers)
            print(f"{name}, {number} streams: {beside}")
    missed = []
    said = []
    if 1 in streams:
        one = ratio(1, default, peers)
        said.append(f"{one:.2f} of the best peer at 1 stream (floor {FLOOR_ONE})")
        missed.append(one < FLOOR_ONE)
    if 8 in streams and "mlx_lm.server" in peers:
        eight = ratio(8, default, ["mlx_lm.server"])
        said.append(f"{eight:.2f} x mlx_lm.server at 8 (floor {FLOOR_EIGHT})")
        missed.append(eight < FLOOR_EIGHT)
    got = figures[default]
    sooner = median(cold / warm for cold, warm in zip(got.cold, got.warm, strict=True))
    said.append(f"a known prefix answers {sooner:.1f} x sooner (floor {FLOOR_PREFIX:.0f})")
    missed.append(sooner < FLOOR_PREFIX)
    print(f"{default}: {'; '.join(said)}")
    return 1 if check and any(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
