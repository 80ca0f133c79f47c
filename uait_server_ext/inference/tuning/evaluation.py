"""Score answers to held-out examples against what was expected."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .models import Score, ScoredAnswer

SHOWN = 3
WORD = re.compile(r"\w+")


def score_of(prompts: Sequence[str], expected: Sequence[str], got: Sequence[str]) -> Score:
    """Compare answers with what was expected, one for one.

    Where every expected answer is a JSON object, its fields count: one that is missing, has another
    value, or stands in an answer that is no JSON object, is wrong.
    """
    assert expected
    assert len(prompts) == len(expected) == len(got)
    pairs = list(zip(expected, got, strict=True))
    objects = [_object(text) for text in expected]
    fields = None
    if all(objects):
        right = sum(
            _right(want or {}, _object(text)) for want, text in zip(objects, got, strict=True)
        )
        fields = right / sum(len(want or {}) for want in objects)
    return Score(
        examples=len(pairs),
        exact=sum(_plain(want) == _plain(text) for want, text in pairs) / len(pairs),
        fields=fields,
        similarity=sum(_similarity(want, text) for want, text in pairs) / len(pairs),
        answers=[
            ScoredAnswer(prompt=prompt, expected=want, got=text)
            for prompt, (want, text) in zip(prompts, pairs, strict=True)
        ][:SHOWN],
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _right(want: dict[str, Any], got: dict[str, Any] | None) -> int:
    if got is None:
        return 0
    # `1 == True` in Python, and `1 == 1.0`; in JSON only the second holds
    return sum(
        key in got and got[key] == value and isinstance(got[key], bool) == isinstance(value, bool)
        for key, value in want.items()
    )


def _plain(text: str) -> str:
    return " ".join(text.split())


def _similarity(want: str, got: str) -> float:
    """Return the F1 of the words, as answers are scored in SQuAD (Rajpurkar et al. 2016)."""
    left, right = (Counter(WORD.findall(text.casefold())) for text in (want, got))
    shared = (left & right).total()
    return 2 * shared / (left.total() + right.total()) if shared else float(left == right)
