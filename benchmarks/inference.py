"""Measure the embedded chat model beside the bare llama.cpp, and the embedding model.

    python benchmarks/inference.py [--quick] [--check]

Each round asks every contender once, one after the other, for a short answer to a prompt of about
1,000 tokens that none has seen. UAIT's figures are those of a caller: queue, process and stream
included. ``--check`` fails where UAIT's rate is below the floor times that of the bare engine on
the same weights, or the first word of the default backend comes later than it may.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from uait_server_ext.inference import machine
from uait_server_ext.inference.backends.llamacpp import FORM
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.gguf_convert import HALF_FILE, to_half
from uait_server_ext.inference.models import ChatDone, ChatRequest, Message
from uait_server_ext.inference.prompt import ChatPrompt
from uait_server_ext.inference.service import Inference
from uait_server_ext.paths import default_model_cache

FLOOR = 0.95
FIRST_WORD_SECONDS = 10.0
MODEL = "smollm2-135m-instruct"
NEEDED = {"llamacpp": "xllamacpp", "mlx": "mlx_lm"}
SENTENCE = "The lighthouse of Port {n} was built in {year} and is {metres} metres high. "

LLAMACPP = """
import json, os, sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.verbosity = sys.argv[1], 8192, -1
parameters.cpuparams.n_threads = max(1, int(sys.argv[2]) // 2)
parameters.cpuparams_batch.n_threads = int(sys.argv[2])
parameters.warmup, parameters.ui = False, False
server = xllamacpp.Server(parameters)
for line in sys.stdin:
    tokens, count = json.loads(line)
    began, times = time.monotonic(), []
    def hear(event):
        if event["choices"][0]["text"]:
            times.append(time.monotonic() - began)
    server.handle_completions({"prompt": tokens, "max_tokens": count, "temperature": 0.0,
                               "stream": True}, hear)
    print(json.dumps(times), flush=True)
"""
Ask = Callable[[list[Message], int], "Figures"]


class Figures(NamedTuple):
    """What one answer took, in seconds and tokens a second."""

    first_word: float
    rate: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round, short answers")
    parser.add_argument("--check", action="store_true", help="fail below the floors")
    options = parser.parse_args(arguments)
    rounds, tokens = (1, 12) if options.quick else (5, 48)

    cache = ModelCache(default_model_cache())
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        inference = Inference(
            cache=cache, catalogue=Catalogue.load(), log=logging.getLogger("benchmark")
        )
        stack.callback(lambda: runner.run(inference.stop()))
        contenders = {
            f"UAIT, {name}": asker(runner, inference, f"{MODEL}@{name}")
            for name, module in NEEDED.items()
            if machine.has_module(module)
        }
        runner.run(inference.pull(MODEL))
        contenders |= peers(stack, cache)
        figures = measure(contenders, rounds, tokens)
        sentences = embedding_rate(runner, inference, 64 if options.quick else 512)
    return report(figures, sentences, check=options.check)


def asker(runner: asyncio.Runner, inference: Inference, model: str) -> Ask:
    """Return a function that asks UAIT."""

    async def answer(request: ChatRequest) -> ChatDone:
        done = None
        async for event in inference.chat(request):
            done = event
        assert isinstance(done, ChatDone)
        return done

    def ask(messages: list[Message], tokens: int) -> Figures:
        done = runner.run(answer(ChatRequest(messages=messages, model=model, max_tokens=tokens)))
        spent = done.seconds - done.first_token_seconds
        return Figures(done.first_token_seconds, (done.usage.completion_tokens - 1) / spent)

    return ask


def peers(stack: ExitStack, cache: ModelCache) -> dict[str, Ask]:
    """Start the bare engine, where it is installed, on our weights and on the file as it came.

    MLX without our BLAS is no peer: it takes over a minute for such a prompt.
    """
    entry = Catalogue.load().get(MODEL)
    half = cache.derived(entry, FORM, to_half)
    prompt = ChatPrompt(half)
    threads = str(machine.default_threads())
    asks: dict[str, Ask] = {}
    if machine.has_module("xllamacpp"):
        for name, path in (("same weights", half / HALF_FILE), ("4-bit file", _gguf(cache))):
            process = stack.enter_context(child(LLAMACPP, str(path), threads))
            asks[f"llama.cpp alone, {name}"] = peer(process, prompt)
    return asks


def _gguf(cache: ModelCache) -> Path:
    return cache.source(Catalogue.load().get(MODEL)) / "model.gguf"


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script that answers lines with lines."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        yield process
        process.kill()


def peer(process: subprocess.Popen[bytes], prompt: ChatPrompt) -> Ask:
    """Return a function that asks a bare engine with the very same tokens."""

    def ask(messages: list[Message], tokens: int) -> Figures:
        assert process.stdin
        assert process.stdout
        work = [prompt.tokens([message.model_dump() for message in messages]), tokens]
        process.stdin.write(json.dumps(work).encode() + b"\n")
        process.stdin.flush()
        times: list[float] = json.loads(process.stdout.readline())
        return Figures(times[0], (len(times) - 1) / (times[-1] - times[0]))

    return ask


def measure(contenders: dict[str, Ask], rounds: int, tokens: int) -> dict[str, Figures]:
    """Ask everyone in turn; return medians."""
    heard: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, ask in contenders.items():
            got = ask(question(number), tokens)
            if number:  # the first round loads and warms
                heard[name].append(got)
    return {
        name: Figures(median(f.first_word for f in got), median(f.rate for f in got))
        for name, got in heard.items()
    }


def question(number: int) -> list[Message]:
    """Return a prompt of about 1,000 tokens whose beginning no other round shares."""
    facts = "".join(
        SENTENCE.format(n=n, year=1800 + n, metres=n + 10)
        for n in range(number * 40, number * 40 + 40)
    )
    text = f"Round {number}. {facts}\nTell me all you know about these lighthouses."
    return [Message(role="user", content=text)]


def embedding_rate(runner: asyncio.Runner, inference: Inference, count: int) -> float:
    """Return passages of about 128 tokens embedded in a second."""
    texts = [f"{n}. " + SENTENCE.format(n=n, year=1900, metres=20) * 6 for n in range(count)]
    embedder = inference.embedder
    runner.run(embedder.embed(texts[:4], purpose="ingest"))
    began = time.monotonic()
    runner.run(embedder.embed(texts, purpose="ingest"))
    return count / (time.monotonic() - began)


def report(figures: dict[str, Figures], sentences: float, *, check: bool) -> int:
    """Print the table and the figure that matters; return the exit code."""
    print(f"{'':28}{'first word s':>14}{'tokens/s':>10}")
    for name, got in figures.items():
        print(f"{name:28}{got.first_word:14.2f}{got.rate:10.1f}")
    print(f"embeddings: {sentences:.1f} passages of 128 tokens a second")
    ours, bare = figures.get("UAIT, llamacpp"), figures.get("llama.cpp alone, same weights")
    if ours is None or bare is None:
        print("llama.cpp is not installed here: nothing to compare")
        return 0
    ratio = ours.rate / bare.rate
    print(
        f"UAIT on llama.cpp: {ratio:.2f} of the bare engine's rate (floor {FLOOR}), first word "
        f"after {ours.first_word:.1f} s (at most {FIRST_WORD_SECONDS:.0f})"
    )
    missed = ratio < FLOOR or ours.first_word > FIRST_WORD_SECONDS
    return 1 if check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
