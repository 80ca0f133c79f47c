"""Verifiers: is an answer good enough to be given, or must a stronger model be asked?

============= =========================== ====================================================
name          looks at                    accepts
============= =========================== ====================================================
``schema``    form asked of the answer    JSON that the schema accepts, tool calls whose arguments
                                          fit their tool
``tests``     code in the answer          code with which the caller's tests pass
``citations`` passages and marks ``[n]``  sentences that the passages they name support
``agreement`` further samples             the answer on which enough samples agree
``logprob``   the tokens' logprobs        an answer of which the model was sure
============= =========================== ====================================================

A text's regular expressions (`pattern`) are the backend's to keep: here they could run for ever.
Code is run by a port that the caller passes: routing knows no kernel. A verifier whose material is
missing is not used (`verifier_for`); several must all accept, the cheapest first.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from uait_server_ext.inference.models import (
    ChatDone,
    ChatRequest,
    JsonObject,
    JsonSchema,
)

from .models import Again, HeldAnswer, Verdict, Verifier

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
FINAL = re.compile(
    r"(?:####|\\boxed\{|^\s*A:|\banswer(?:\s+is)?\s*:?)\s*\$?\s*(?P<answer>[^\n}]*)",
    re.MULTILINE | re.IGNORECASE,
)
FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)
SENTENCE = re.compile(r"[^.!?\n]+(?:\.(?=\d)[^.!?\n]+)*(?:[.!?]+|\n|$)(?:\s*\[\d+\])*")
MARK = re.compile(r"\[(\d+)\]")
CONTENT_WORD = re.compile(r"[^\W\d_]{4,}|\d[\d.,]*")
MAX_ANSWER_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class CodeResult:
    """How code ended: whether without an error, and the end of what it printed."""

    passed: bool
    output: str = ""


class CodeRunner(Protocol):
    """Runs code away from this process: in a kernel, in a sandboxed child."""

    async def run(self, source: str, *, seconds: float) -> CodeResult:
        """Run a program; one that takes longer than `seconds` has not passed."""
        ...


@dataclass(frozen=True, slots=True)
class Checks:
    """What a caller gives along to verify an answer with.

    Attributes:
        tests: code that raises where the answer's code, which stands before it, is wrong.
        runner: what runs them.
        passages: what the answer is to stand on; `[1]` is the first.
        verifiers: verifiers of the caller's own; they must accept, too.
    """

    tests: str | None = None
    runner: CodeRunner | None = None
    passages: tuple[str, ...] = ()
    verifiers: tuple[Verifier, ...] = ()


class AsIs:
    """Verifiers that need nothing of the model but its answer."""

    def asks(self, request: ChatRequest) -> ChatRequest:
        """Return the request as it is."""
        return request


class SchemaVerifier(AsIs):
    """Accepts what has the form that was asked for."""

    name = "schema"

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Check the answer against the response format, or tool calls against their tools."""
        if why := await asyncio.to_thread(wrong_form, request, answer):
            return Verdict(False, 0.0, self.name, why)
        return Verdict(True, 1.0, self.name, "has the form that was asked for")


@dataclass(frozen=True, slots=True)
class TestsVerifier(AsIs):
    """Accepts code with which the caller's tests pass."""

    runner: CodeRunner
    tests: str
    seconds: float = 20.0
    name: str = "tests"
    __test__ = False  # no test case of pytest

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Run the answer's code and the tests after it."""
        source = f"{code_of(answer.text)}\n\n{self.tests}\n"
        result = await self.runner.run(source, seconds=self.seconds)
        if result.passed:
            return Verdict(True, 1.0, self.name, "the tests pass")
        last = result.output.strip().rpartition("\n")[2][:200]
        return Verdict(False, 0.0, self.name, f"the tests fail: {last}".rstrip(": "))


@dataclass(frozen=True, slots=True)
class Citations(AsIs):
    """Accepts an answer each of whose sentences the passages that it names support.

    A sentence is supported where its passages hold at least `share` of its content words and all of
    its numbers. This finds invented facts, not wrong conclusions.
    """

    passages: Sequence[str]
    share: float = 0.6
    name: str = "citations"

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Check every sentence against the passages that it names."""
        return await asyncio.to_thread(self.judge, answer)

    def judge(self, answer: ChatDone) -> Verdict:
        """Do what `verify` does; blocks."""
        known = [content_words(passage) for passage in self.passages]
        scores: list[float] = []
        for sentence in sentences(answer.text[:MAX_ANSWER_CHARACTERS]):
            named = [int(number) for number in MARK.findall(sentence)]
            words = content_words(MARK.sub("", sentence))
            if not words:
                continue
            if not named:
                return Verdict(False, 0.0, self.name, f"nothing is cited for: {short(sentence)}")
            if missing := [number for number in named if not 1 <= number <= len(known)]:
                return Verdict(False, 0.0, self.name, f"there is no passage [{missing[0]}]")
            there = frozenset[str]().union(*(known[number - 1] for number in named))
            numbers = {word for word in words if word[0].isdigit()}
            share = len(words & there) / len(words)
            if share < self.share or not numbers <= there:
                why = f"{MARK.findall(sentence)} does not support: {short(sentence)}"
                return Verdict(False, share * 0.5, self.name, why)
            scores.append(share)
        if not scores:
            return Verdict(False, 0.0, self.name, "the answer says nothing")
        return Verdict(True, min(scores), self.name, "what it says stands in the passages")


@dataclass(frozen=True, slots=True)
class SelfAgreement(AsIs):
    """Accepts an answer that the same model gives again (self-consistency).

    X. Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2022
    (arXiv:2203.11171). Sampling ends as soon as the outcome is sure.

    Attributes:
        samples: answers compared, the first included.
        share: of them that must be the same as the first.
        temperature: of the further samples.
    """

    samples: int = 2
    share: float = 1.0
    temperature: float = 0.7
    name: str = "agreement"

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Ask again and compare what the answers come to."""
        first = answer_key(answer.text)
        if not first:
            return Verdict(False, 0.0, self.name, "the answer comes to nothing")
        needed = max(2, math.ceil(self.share * self.samples - 1e-9))
        keys = [first]
        while len(keys) < self.samples:
            same = sum(agree(first, key) for key in keys)
            if same >= needed or same + self.samples - len(keys) < needed:
                break
            seed = None if request.seed is None else request.seed + len(keys)
            changed = {"temperature": max(self.temperature, request.temperature), "seed": seed}
            done = await again(request.model_copy(update=changed))
            keys.append(answer_key(done.text))
        same = sum(agree(first, key) for key in keys)
        why = f"{same} of {len(keys)} answers agree"
        return Verdict(same >= needed, same / len(keys), self.name, why)


@dataclass(frozen=True, slots=True)
class LogprobMargin:
    """Accepts an answer of which the model was sure.

    Attributes:
        least: geometric mean of the probabilities of the tokens.
        margin: the smallest share of tokens whose probability is twice that of the next best.
    """

    least: float = 0.7
    margin: float = 0.8
    name: str = "logprob"

    def asks(self, request: ChatRequest) -> ChatRequest:
        """Ask for the tokens' logprobs with one alternative each."""
        if request.logprobs and request.logprobs >= 2:
            return request
        return request.model_copy(update={"logprobs": 2})

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Judge the answer by the probabilities of its tokens."""
        tokens = answer.logprobs if isinstance(answer, HeldAnswer) else []
        if not tokens:
            return Verdict(False, 0.0, self.name, "the model told no logprobs")
        mean = math.exp(sum(token.logprob for token in tokens) / len(tokens))
        clear = 0
        for token in tokens:
            others = [top.logprob for top in token.top if top.token != token.token]
            clear += not others or token.logprob - max(others) >= math.log(2)
        share = clear / len(tokens)
        why = f"mean probability {mean:.2f}, {share:.0%} of the tokens clear"
        return Verdict(mean >= self.least and share >= self.margin, mean * share, self.name, why)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Accepts what every verifier accepts; the first that does not ends it."""

    verifiers: Sequence[Verifier] = field(default_factory=tuple)

    def asks(self, request: ChatRequest) -> ChatRequest:
        """Ask for what any of them needs."""
        for verifier in self.verifiers:
            request = verifier.asks(request)
        return request

    async def verify(self, request: ChatRequest, answer: ChatDone, again: Again) -> Verdict:
        """Ask one after the other."""
        verdicts: list[Verdict] = []
        for verifier in self.verifiers:
            verdict = await verifier.verify(request, answer, again)
            if not verdict.accepted:
                return verdict
            verdicts.append(verdict)
        return Verdict(
            bool(verdicts),
            min((verdict.score for verdict in verdicts), default=0.0),
            "+".join(verdict.verifier for verdict in verdicts),
            "; ".join(verdict.why for verdict in verdicts),
        )


def wrong_form(request: ChatRequest, answer: ChatDone) -> str | None:
    """Say what of the form that was asked for an answer does not have, if anything."""
    if answer.finish_reason == "length":
        return "the answer was cut off"
    tools = {tool.name: tool.parameters for tool in request.tools}
    for call in answer.tool_calls:
        if call.name not in tools:
            return f"there is no tool {call.name!r}"
        if why := against_schema(call.arguments, tools[call.name]):
            return f"arguments of {call.name}: {why}"
    if answer.tool_calls:
        return None
    if request.tools and request.tool_choice not in ("auto", "none"):
        return "a tool was to be called"
    wanted = request.response_format
    if isinstance(wanted, JsonSchema):
        return against_schema(answer.text, wanted.json_schema)
    if isinstance(wanted, JsonObject):
        return against_schema(answer.text, {"type": "object"})
    return None


def against_schema(text: str, schema: dict[str, Any]) -> str | None:
    """Say why a text is not JSON that a schema accepts, if it is not."""
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]
    from jsonschema.validators import extend  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if len(text) > MAX_ANSWER_CHARACTERS:
        return "it is too long to be checked"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "it is no JSON"
    checker = extend(Draft202012Validator, dict.fromkeys(("pattern", "patternProperties"), nothing))
    try:
        # A registry of nothing: the default one fetches `$ref` from wherever a schema says.
        error = best_match(checker(schema, registry=Registry()).iter_errors(value))
    except (Unresolvable, RecursionError):
        return "the schema refers to what there is not"
    return None if error is None else f"{error.json_path}: {error.message[:200]}"


def nothing(*_: object) -> tuple[()]:
    """Find no fault."""
    return ()


def code_of(text: str) -> str:
    """Return the code blocks of an answer, or all of it where it has none."""
    blocks: list[str] = FENCE.findall(text)
    return "\n\n".join(blocks) if blocks else text


def answer_key(text: str) -> str:
    """Return what an answer comes to: its final number, else its final words, else its own.

    `#### 1,200`, `A: 1200` and `The answer is $1200.00.` all come to `1200`.
    """
    text = text[-MAX_ANSWER_CHARACTERS:]
    if final := [match["answer"] for match in FINAL.finditer(text) if match["answer"].strip()]:
        said = final[-1]
        numbers = NUMBER.findall(said)
        return number_key(numbers[0]) if numbers else plain(said)
    if numbers := NUMBER.findall(text):
        return number_key(numbers[-1])
    return plain(text)


def agree(one: str, other: str) -> bool:
    """Tell whether two answers come to the same: equal, or of mostly the same words."""
    if one == other:
        return bool(one)
    left, right = Counter(one.split()), Counter(other.split())
    if min(left.total(), right.total()) < 6:
        return False
    return 2 * (left & right).total() / (left.total() + right.total()) >= 0.8


def number_key(text: str) -> str:
    """Return the one way a number is written."""
    value = float(text.replace(",", ""))
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def plain(text: str) -> str:
    """Return the words of a text in lower case, without marks."""
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences(text: str) -> list[str]:
    """Return the sentences of an answer, each with the marks that follow it."""
    return [found.strip() for found in SENTENCE.findall(text) if found.strip()]


def content_words(text: str) -> frozenset[str]:
    """Return the long words, cut to their stems, and the numbers of a text."""
    return frozenset(
        number_key(word.rstrip(".,")) if word[0].isdigit() and NUMBER.fullmatch(word.rstrip(".,"))
        else word.lower()[:6]
        for word in CONTENT_WORD.findall(text)
    )  # fmt: skip


def short(text: str) -> str:
    """Return the beginning of a sentence."""
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"
