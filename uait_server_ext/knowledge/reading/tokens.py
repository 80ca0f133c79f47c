"""Count a text's tokens without a tokenizer.

The rule (a Latin word is one token up to seven letters and one more for every three and a half,
a number one for every three digits, any other character one) was fitted to the WordPiece tokenizer
of all-MiniLM-L6-v2: on passages of 900 characters from SciFact, MT-RAG's finance pool, five long
documents and Python code its mean is 0.92 to 1.09 of the true count, and 95 % of passages are
above 0.80 and below 1.18 of it. It is about four times faster than the tokenizer.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left

TOKEN = re.compile(r"[A-Za-z\u00c0-\u024f]+|[0-9]+|\S")
PLAIN_LETTERS = 7
LETTERS_EACH = 3.5
DIGITS_EACH = 3


class Ruler:
    """Measures spans of one text in tokens, each in logarithmic time."""

    def __init__(self, text: str, start: int = 0, end: int | None = None) -> None:
        self._starts = array("Q")
        for match in TOKEN.finditer(text, start, len(text) if end is None else end):
            first, length = match.start(), match.end() - match.start()
            if length == 1:
                self._starts.append(first)
                continue
            tokens = _tokens_in(length, is_number=text[first].isdigit())
            self._starts.extend(first + piece * length // tokens for piece in range(tokens))

    def count(self, start: int, end: int) -> int:
        """Return the number of tokens that start in the span."""
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def after(self, start: int, tokens: int) -> int:
        """Return where the span that starts at ``start`` and has so many tokens must end."""
        return int(self._starts[bisect_left(self._starts, start) + tokens])


def count_tokens(text: str) -> int:
    """Return the estimated number of tokens in ``text``."""
    return Ruler(text).count(0, len(text))


def _tokens_in(length: int, *, is_number: bool) -> int:
    if is_number:
        return -(-length // DIGITS_EACH)
    return 1 if length <= PLAIN_LETTERS else 1 + round((length - PLAIN_LETTERS) / LETTERS_EACH)
