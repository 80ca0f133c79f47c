"""How hard is a request? A class of task and a number from 0 to 1, without asking a model.

`look` reads what is in the words: length, numbers, steps, code, constraints. `Difficulty` turns
that into the probability that the smallest tier's answer will not do. It starts from weights that
were set by hand and learns from what verifiers say: online Bayesian logistic regression (the
extended Kalman filter of Penny and Roberts, "Dynamic logistic regression", IJCNN 1999), which
forgets, so that it follows a model that is exchanged. It is as large after a million requests as
after one.

Embeddings are left out: on benchmarks/router.py's data a ridge regression on the local embedder's
vectors is no better than on these features (APGR 0.59 both, 0.61 together), and a request would
wait for the embedder.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from uait_server_ext.inference.models import ChatRequest

TaskClass = Literal["chat", "code", "extract", "grounded", "math", "rewrite", "tools", "vision"]
TASKS: tuple[TaskClass, ...] = get_args(TaskClass)

MAX_CHARACTERS = 4000
"""Of the question: what comes after says no more about how hard it is."""

WEIGHTS: dict[str, float] = {
    "bias": -2.0,
    "words": 1.6,  # of the question
    "prompt": 0.4,  # characters of everything that is sent
    "numbers": 0.2,
    "steps": 0.8,
    "fractions": 0.2,
    "magnitude": 0.1,  # of the largest number
    "reasoning": 0.8,
    "constraints": 0.4,
    "sentences": 0.4,
    "questions": 0.2,
    "long_words": 0.5,
    "not_ascii": 0.5,
    "turns": 0.2,
    "structured": -0.3,
} | {task: {"code": 0.5, "math": 0.3, "rewrite": -0.5}.get(task, 0.0) for task in TASKS}
"""The features, and what each adds to the log-odds before anything was observed."""

SIZE = len(WEIGHTS)
VARIANCE = 1.0
"""Of a weight, before anything was observed."""

FORGET = 0.9995
"""Weight of what was observed, for each observation that came after: half after some 1,400."""


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


WORD = re.compile(r"[^\W\d_]+|\d[\d.,]*")
STEPS = word_set(
    "after afterwards altogether also another before both combined day days decreases double each "
    "every finally first gives half if increases instead least left less more most next now older "
    "per percent remaining rest second sells spends than then third times together total triple "
    "twice until week weeks younger"
)
REASONING = word_set(
    "analyse analyze argue compare consequences derive design diagnose estimate evaluate explain "
    "infer justify optimise optimize plan prove refactor strategy theorem tradeoff why"
)
CONSTRAINTS = word_set(
    "always avoid cannot every exactly except least most must never no none not only respectively "
    "unless without"
)
NUMBERS = word_set(
    "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred "
    "thousand million dozen"
)
CODE = re.compile(
    r"```|\b(?:def|class|import|return|function|async|await|SELECT|Traceback)\b.*[(:{;]|"
    r"\b(?:python|javascript|typescript|java|rust|sql|regex|unit tests?|stack trace|compiler?)\b",
    re.IGNORECASE,
)
MATHS = re.compile(
    r"\b(?:how (?:many|much|long|far|old)|calculate|compute|solve|equation|integral|derivative|"
    r"probability|percent|sum of|average|total|what is the (?:cost|price|ratio|number))\b",
    re.IGNORECASE,
)
FORMULA = re.compile(r"\d\s*[%=+*/^x×-]\s*\d")
REWRITE = re.compile(
    r"\s*(?:please\s+)?(?:translate|rewrite|rephrase|paraphrase|summari[sz]e|shorten|proofread|"
    r"correct|reformat|simplify)\b",
    re.IGNORECASE,
)
MARKED_PASSAGE = re.compile(r"^\[\d+\]", re.MULTILINE)


class Look(NamedTuple):
    """What was seen in a request: its class of task and its features, as `WEIGHTS` names them."""

    task: TaskClass
    features: tuple[float, ...]


def look(request: ChatRequest, *, grounded: bool = False) -> Look:
    """Read a request; some 50 µs for a question of a few sentences.

    Args:
        grounded: the caller says that the answer is to stand on given passages.
    """
    asked = next((m.content for m in reversed(request.messages) if m.role == "user"), "")
    question = asked[:MAX_CHARACTERS]
    length = sum(len(message.content) for message in request.messages)
    words = WORD.findall(question)
    lower = [word.lower() for word in words]
    numbers = [word for word in lower if word[0].isdigit() or word in NUMBERS]
    task = task_of(request, question, len(numbers), grounded=grounded)
    structured = request.response_format.type != "text" or bool(request.tools)
    count = max(1, len(words))
    values = {
        "bias": 1.0,
        "words": math.log1p(len(words)) / 5,
        "prompt": math.log1p(length) / 10,
        "numbers": math.log1p(len(numbers)) / 2,
        "steps": math.log1p(sum(word in STEPS for word in lower)) / 2,
        "fractions": min(1.0, (question.count("%") + sum("." in n[:-1] for n in numbers)) / 2),
        "magnitude": min(1.0, max((len(n) for n in numbers if n[0].isdigit()), default=0) / 8),
        "reasoning": math.log1p(sum(word in REASONING for word in lower)),
        "constraints": math.log1p(sum(word in CONSTRAINTS for word in lower)) / 2,
        "sentences": math.log1p(question.count(". ") + question.count("\n")) / 3,
        "questions": math.log1p(question.count("?")) / 2,
        "long_words": sum(len(word) >= 9 for word in words) / count,
        "not_ascii": 0.0
        if question.isascii()
        else sum(c > "\x7f" for c in question) / len(question),
        "turns": math.log1p(len(request.messages)) / 3,
        "structured": float(structured),
        task: 1.0,
    }
    return Look(task, tuple(values.get(name, 0.0) for name in WEIGHTS))


def task_of(
    request: ChatRequest, question: str, numbers: int, *, grounded: bool = False
) -> TaskClass:
    """Return the class of a request's task; the first that fits."""
    if any(message.images for message in request.messages):
        return "vision"
    if request.tools:
        return "tools"
    if request.response_format.type != "text":
        return "extract"
    if grounded or any(MARKED_PASSAGE.search(m.content[:MAX_CHARACTERS]) for m in request.messages):
        return "grounded"
    if REWRITE.match(question):
        return "rewrite"
    if CODE.search(question):
        return "code"
    if (numbers and MATHS.search(question)) or FORMULA.search(question):
        return "math"
    return "chat"


class Difficulty:
    """The probability that the smallest tier's answer will not do; learns from each that is judged.

    Attributes:
        seen: how many answers it has learned from.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._weights = list(WEIGHTS.values())
        self._covariance = [
            [VARIANCE if row == column else 0.0 for column in range(SIZE)] for row in range(SIZE)
        ]

    def score(self, features: Sequence[float]) -> float:
        """Return the difficulty of what was seen, 0 to 1."""
        return logistic(dot(self._weights, features))

    def learn(self, features: Sequence[float], *, hard: bool) -> None:
        """Learn that the smallest tier's answer would not do, or that it did; some 100 µs."""
        said = self.score(features)
        slope = max(1e-3, said * (1 - said))
        spread = [dot(row, features) for row in self._covariance]
        total = FORGET + slope * dot(spread, features)
        step = (float(hard) - said) / total
        self._weights = [w + step * s for w, s in zip(self._weights, spread, strict=True)]
        shrink = slope / total
        for row, own in zip(self._covariance, spread, strict=True):
            factor = shrink * own
            row[:] = [(r - factor * s) / FORGET for r, s in zip(row, spread, strict=True)]
        self._bound()
        self.seen += 1

    def dump(self) -> bytes:
        """Return what was learned."""
        flat = array("d", [float(self.seen), *self._weights])
        for row in self._covariance:
            flat.extend(row)
        return flat.tobytes()

    def load(self, state: bytes) -> bool:
        """Go on from what `dump` returned; tell whether it is of this version's features."""
        flat = array("d")
        if len(state) != flat.itemsize * (1 + SIZE + SIZE * SIZE):
            return False
        flat.frombytes(state)
        if not all(math.isfinite(value) for value in flat):
            return False
        self.seen = int(flat[0])
        self._weights = list(flat[1 : SIZE + 1])
        rows = range(SIZE + 1, len(flat), SIZE)
        self._covariance = [list(flat[start : start + SIZE]) for start in rows]
        return True

    def _bound(self) -> None:
        """Keep what is never seen from growing without end: forgetting ends at ignorance."""
        for index in range(SIZE):
            if (own := self._covariance[index][index]) > VARIANCE:
                scale = math.sqrt(VARIANCE / own)
                self._covariance[index] = [value * scale for value in self._covariance[index]]
                for row in self._covariance:
                    row[index] *= scale


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the inner product."""
    return sum(map(float.__mul__, left, right), 0.0)


def logistic(value: float) -> float:
    """Return 1 / (1 + exp(-value)) without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)
