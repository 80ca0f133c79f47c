"""Constrain a small model to 20 forms and count the answers that are valid; look at the price.

    python benchmarks/structured.py [--count 1000] [--model MODEL] [--quick] [--check]

The cases are in `structured_cases.json`: nested objects, enums, numbers, arrays, unions, recursion,
formats, patterns. Every second answer has so few tokens that the model could not end it by itself.
An answer is valid when `jsonschema` (or `re.fullmatch`) accepts it whole. The price is shown beside
the same prompts without a form. ``--check`` fails where one answer is not valid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.models import ChatDone, ChatRequest
from uait_server_ext.inference.service import Inference
from uait_server_ext.paths import default_model_cache

CASES = Path(__file__).with_name("structured_cases.json")
AMPLE, SHORT = 160, 72
AT_ONCE = 8
MODEL = "smollm2-135m-instruct"


@dataclass
class Counted:
    """What became of the answers of one case."""

    valid: int = 0
    wrong: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    per_token: list[float] = field(default_factory=list)


def is_valid(form: dict[str, Any], text: str) -> bool:
    """Say whether a text is what its form asks for, judged by somebody else's code."""
    if form["type"] == "regex":
        return re.fullmatch(form["pattern"], text) is not None
    try:
        value = json.loads(text)
        if form["type"] == "json_object":
            return isinstance(value, dict)
        checker = jsonschema.Draft202012Validator(
            form["json_schema"], format_checker=jsonschema.FormatChecker()
        )
        checker.validate(value)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


async def answer(
    inference: Inference, case: dict[str, Any], number: int, model: str, *, free: bool = False
) -> ChatDone:
    """Make one answer; its number decides seed, warmth and length."""
    request = ChatRequest.model_validate(
        {
            "model": model,
            "messages": [{"role": "user", "content": case["prompt"]}],
            "max_tokens": AMPLE if number % 2 else SHORT,
            "temperature": (0.0, 0.7, 1.2)[number % 3],
            "seed": number,
            **({} if free else {"response_format": case["format"]}),
        }
    )
    async for event in inference.chat(request):
        if isinstance(event, ChatDone):
            return event
    raise AssertionError("an answer ended without a last event")


async def measure(count: int, model: str) -> dict[str, Counted]:
    """Make `count` answers over all cases, several at once."""
    cases = json.loads(CASES.read_text("utf-8"))
    inference = Inference(
        cache=ModelCache(default_model_cache()),
        catalogue=Catalogue.load(),
        chat_model=MODEL,
        log=logging.getLogger("structured"),
    )
    await inference.start()
    found = {case["name"]: Counted() for case in cases}
    free = Counted()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        case = cases[number % len(cases)]
        plain = number % 25 == 0  # a few without a form, in the same run, for the price
        async with gate:
            done = await answer(inference, case, number // len(cases), model)
            counted = found[case["name"]]
            counted.ends[done.finish_reason] += 1
            counted.per_token.append(per_token(done))
            if is_valid(case["format"], done.text):
                counted.valid += 1
            else:
                counted.wrong.append(f"{number}: {done.finish_reason}: {done.text!r}")
            if plain:
                other = await answer(inference, case, number // len(cases), model, free=True)
                free.per_token.append(per_token(other))

    try:
        await asyncio.gather(*(one(number) for number in range(count)))
    finally:
        await inference.stop()
    found["(no form)"] = free
    return found


def per_token(done: ChatDone) -> float:
    """Return the seconds a token after the first."""
    tokens = max(1, done.usage.completion_tokens - 1)
    return (done.seconds - done.first_token_seconds) / tokens


def main() -> None:
    """Run, print the table, and as the last line the figure that matters."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--quick", action="store_true", help="40 answers")
    parser.add_argument("--check", action="store_true", help="fail unless all are valid")
    options = parser.parse_args()
    count = 40 if options.quick else options.count
    began = time.monotonic()
    found = asyncio.run(measure(count, options.model))
    print(f"{'form':16} {'valid':>9} {'ms/token':>9}  ended")
    for name, counted in found.items():
        made = counted.valid + len(counted.wrong)
        speed = 1000 * statistics.median(counted.per_token) if counted.per_token else 0.0
        ends = ", ".join(f"{reason} {times}" for reason, times in counted.ends.most_common())
        print(f"{name:16} {f'{counted.valid}/{made}':>9} {speed:9.1f}  {ends}")
        for wrong in counted.wrong:
            print(f"    {wrong}")
    valid = sum(counted.valid for counted in found.values())
    print(f"{time.monotonic() - began:.0f} s, {AT_ONCE} at once, {options.model}")
    print(f"{valid} of {count} valid")
    if options.check and valid < count:
        sys.exit(1)


if __name__ == "__main__":
    main()
