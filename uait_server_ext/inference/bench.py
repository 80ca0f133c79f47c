"""How fast a model is on this machine: one stream, prompts that share nothing with each other."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from contextlib import aclosing

from uait_server_ext.errors import InvalidInput

from .catalogue import CatalogueEntry
from .models import ChatDone, CompletionRequest
from .service import Inference

SENTENCE = "The lighthouse of port {n} was built in {year} and its lamp is {height} metres high. "
SENTENCE_TOKENS = 22  # about, of most tokenizers
EMBEDDED_TEXTS = 64
QUERIES = 20


async def measure(
    inference: Inference,
    entry: CatalogueEntry,
    model: str,
    *,
    prompt_tokens: int = 512,
    max_tokens: int = 64,
    rounds: int = 3,
) -> dict[str, str]:
    """Run a model and return figures with their units, for a table.

    Raises:
        InvalidInput: nothing is measured of models of this kind.
    """
    began = time.monotonic()
    await inference.load(model)
    loading = {"load": f"{time.monotonic() - began:.1f} s"}
    if entry.kind == "chat":
        return loading | await _chat(inference, model, prompt_tokens, max_tokens, rounds)
    if entry.kind == "embedding":
        return loading | await _embedding(inference, model, rounds)
    raise InvalidInput(f"{entry.id} reranks; chat and embedding models can be measured.")


async def _chat(
    inference: Inference, model: str, prompt_tokens: int, max_tokens: int, rounds: int
) -> dict[str, str]:
    answers = []
    for number in range(rounds + 1):
        request = CompletionRequest(
            prompt=prompt_of(prompt_tokens, number), model=model, max_tokens=max_tokens
        )
        async with aclosing(inference.complete(request)) as events:
            answers += [event async for event in events if isinstance(event, ChatDone)]
    measured = answers[1:]  # the first one warms caches
    decoding = [
        (answer.usage.completion_tokens - 1) / (answer.seconds - answer.first_token_seconds)
        for answer in measured
        if answer.usage.completion_tokens > 1 and answer.seconds > answer.first_token_seconds
    ]
    reading = [
        (answer.usage.prompt_tokens - answer.usage.cached_tokens) / answer.first_token_seconds
        for answer in measured
        if answer.first_token_seconds > 0
    ]
    first = statistics.median(answer.first_token_seconds for answer in measured)
    tokens = statistics.median(answer.usage.prompt_tokens for answer in measured)
    return {
        "backend": measured[0].backend,
        "prompt": f"{tokens:.0f} tokens",
        "prompt speed": f"{statistics.median(reading):,.0f} tokens/s" if reading else "-",
        "first token": f"{first:.2f} s",
        "decode speed": f"{statistics.median(decoding):,.1f} tokens/s" if decoding else "-",
    }


async def _embedding(inference: Inference, model: str, rounds: int) -> dict[str, str]:
    speeds, waits = [], []
    for number in range(rounds + 1):
        texts = [prompt_of(128, EMBEDDED_TEXTS * number + n) for n in range(EMBEDDED_TEXTS)]
        began = time.monotonic()
        made = await inference.embed(texts, model=model)
        seconds = time.monotonic() - began
        if number:
            speeds.append((len(texts) / seconds, sum(made.tokens) / seconds))
    for number in range(QUERIES):
        began = time.monotonic()
        await inference.embed([f"How high is lamp number {number}?"], model=model)
        waits.append(time.monotonic() - began)
    return {
        "texts of about 128 tokens": f"{statistics.median(s for s, _ in speeds):,.0f} texts/s",
        "speed": f"{statistics.median(s for _, s in speeds):,.0f} tokens/s",
        "query": f"{1000 * statistics.median(waits):.1f} ms",
    }


def prompt_of(tokens: int, number: int) -> str:
    """Return a text of about so many tokens, unlike that of any other number from its start."""
    first = 1000 * number
    return "".join(
        SENTENCE.format(n=first + n, year=1700 + (number + n) % 300, height=10 + n)
        for n in range(max(1, tokens // SENTENCE_TOKENS))
    )


def worker_peak_bytes() -> int:
    """Return the memory that the largest worker of this process took, once it has ended."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
