"""The shortest way from where an answer stands to a valid end, in tokens.

Exact for what a grammar forces. Where it leaves a choice: greedy, closing signs first; and where
that does not end, breadth first over one token for each character. Of states that let the same
tokens pass one is looked at; where that finds nothing, one at each distance from the start. What
takes longer than `MAX_SECONDS` is given up: the answer then ends where its tokens do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

STRUCTURE = frozenset(b'"[]{},:\\')
CLOSERS = frozenset(b'"}]')
EMPTY = b'""'
VALUES = frozenset((b"null", b"true", b"false", b"[]", b"{}"))
FREE_TEXT = 1000  # so many tokens may come only where text is free
QUOTE = 300
WORDY = 400  # rank from which a token closes nothing
MAX_WANDERING = 64
MAX_TOKENS = 1000
MAX_STATES = 100
MAX_TRIALS = 300
MAX_SECONDS = 0.2  # of this thread's own time: other answers wait meanwhile
NUMBER_TOKENS = 64  # that may go on with a number; with a text, many more
NEVER = np.iinfo(np.int32).max

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ranks:
    """The tokens of a vocabulary by how soon they lead to an end.

    Attributes:
        structure: ranks for choosing in JSON; lower is sooner.
        words: ranks for filling text; lower is longer.
        quotes: those that close a string, the longest first.
        ends: those that come after a number.
        letters: one token for each ASCII character, the shortest.
        signs: those of them that are a sign, and of letters and digits one of a kind.
        plain: which hold nothing that structures JSON.
    """

    structure: npt.NDArray[np.int32]
    words: npt.NDArray[np.int32]
    quotes: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    letters: npt.NDArray[np.int64]
    signs: npt.NDArray[np.int64]
    plain: Mask

    @classmethod
    def of(cls, tokenizer: LLTokenizer) -> Ranks:
        """Rank a vocabulary by the bytes of its tokens; takes 0.1 s for 50,000."""
        size = tokenizer.vocab_size
        structure = np.full(size, NEVER, np.int32)
        words = np.full(size, NEVER, np.int32)
        plain = np.zeros(size, np.bool_)
        shortest: dict[int, tuple[int, int]] = {}
        for token in range(size):
            text = tokenizer.decode_bytes([token])
            if not text or tokenizer.is_special_token(token):
                continue
            structure[token] = _rank(text)
            plain[token] = STRUCTURE.isdisjoint(text)
            if text.isalpha():
                words[token] = 100 - min(len(text), 99)
            known = shortest.get(text[0])
            if known is None or len(text) < known[0]:
                shortest[text[0]] = len(text), token
        quotes = sorted(np.flatnonzero(_is_quote(structure)), key=lambda token: -structure[token])
        letters = [token for first, (_, token) in sorted(shortest.items()) if 0x20 <= first < 0x7F]
        signs = [
            token
            for first, (_, token) in sorted(shortest.items())
            if 0x20 <= first < 0x7F and (not chr(first).isalnum() or chr(first) in "0aA")
        ]
        ends = [shortest[ord(sign)][1] for sign in ",]}" if ord(sign) in shortest]
        return cls(
            structure,
            words,
            quotes=np.array(quotes, np.int64),
            ends=np.array(ends, np.int64),
            letters=np.array(letters, np.int64),
            signs=np.array(signs, np.int64),
            plain=plain,
        )


def _rank(text: bytes) -> int:
    length = min(len(text), 99)
    if text == EMPTY:
        return 100
    if CLOSERS.issuperset(text):
        return 200 + length if text.startswith(b'"') else 100 - length
    if text in VALUES:
        return QUOTE + length
    if text[0] in b"-+":
        return 600 + length
    if not any(byte >= 0x80 or chr(byte).isalnum() for byte in text):
        return WORDY + length + 10 * (text[0] != ord(","))
    if text.isdigit():
        return 500 + length - (text == b"1")  # zeros alone may not do: -0.0 is not below nought
    if text.isalpha():
        return 700 - length
    return 800 + length


def _is_quote(ranks: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    return (ranks > 100) & (ranks < QUOTE)


class Closing:
    """Finds ways to the end for one answer; a way that still holds is not looked for again."""

    def __init__(
        self, ranks: Ranks, size: int, *, structured: bool, words: Sequence[list[int]] = ()
    ) -> None:
        """Begin an answer.

        Args:
            structured: it is JSON, perhaps within markers.
            words: tokens that stand together in its pattern, to be tried as one.
        """
        self._ranks = ranks
        self._words = words
        self._size = size
        self._structured = structured
        self._known: list[int] | None = None
        self._until = 0.0

    def find(self, matcher: LLMatcher) -> list[int] | None:
        """Return tokens that lead to a valid end, few of them; None where none were found."""
        self._until = time.thread_time() + MAX_SECONDS
        known = self._known or []
        # What came last has often changed no more than the beginning of the way.
        kept = (known[at:] for at in range(len(known) + 1) if _holds(matcher, known[at:]))
        self._known = next(kept, None)
        if self._known is None:
            self._known = self._greedy(matcher.deep_copy())
        if self._known is None:
            self._known = self._search(matcher)
        return None if self._known is None else list(self._known)

    def passed(self, token: int) -> None:
        """Hear which token came: what is left of a way that was followed is still one."""
        if self._known and self._known[0] == token:
            self._known = self._known[1:]

    def _greedy(self, matcher: LLMatcher) -> list[int] | None:
        way: list[int] = []
        wandering = matcher.deep_copy(), 0  # where the choices that closed nothing began
        while not matcher.is_accepting():
            steps = matcher.compute_ff_tokens()
            if not steps:
                allowed = mask_of(matcher, self._size)
                if not allowed.any():
                    return None
                steps = [self._next(allowed)]
            closes = len(steps) > 1 or self._ranks.structure[steps[0]] < WORDY
            if closes and self._structured:
                wandering = matcher.deep_copy(), len(way)
            elif len(way) - wandering[1] > MAX_WANDERING:
                matcher, begun = wandering
                found = self._search(matcher, until_value_ends=self._structured)
                if not found or not matcher.consume_tokens(found):
                    return None
                way = [*way[:begun], *found]
                wandering = matcher.deep_copy(), len(way)
                continue
            way += steps
            if len(way) > MAX_TOKENS or self._is_late() or not matcher.consume_tokens(steps):
                return None
        return way

    def _next(self, allowed: Mask) -> int:
        tokens = np.flatnonzero(allowed)
        if len(tokens) > FREE_TEXT:
            quotes = self._ranks.quotes[allowed[self._ranks.quotes]]
            return int(quotes[0] if len(quotes) else tokens[self._ranks.words[tokens].argmin()])
        return int(tokens[self._ranks.structure[tokens].argmin()])

    def _search(self, matcher: LLMatcher, *, until_value_ends: bool = False) -> list[int] | None:
        """Find the shortest way, to the end or to where a string may end."""
        ranks = self._ranks
        for letters, counting in (
            (ranks.signs, False),
            (ranks.letters, False),
            (ranks.letters, True),
        ):
            found = self._breadth_first(
                matcher, letters, counting, until_value_ends=until_value_ends
            )
            if found is not None:
                return found
        return None

    def _breadth_first(
        self,
        matcher: LLMatcher,
        letters: npt.NDArray[np.int64],
        counting: bool,
        *,
        until_value_ends: bool,
    ) -> list[int] | None:
        start = matcher.deep_copy()
        waiting: deque[tuple[LLMatcher, list[int]]] = deque([(start, [])])
        seen: set[tuple[int, bytes]] = set()
        trials = 0
        while waiting and len(seen) < MAX_STATES and trials < MAX_TRIALS:
            state, way = waiting.popleft()
            for step in self._steps(state, letters):
                trials += 1
                if self._is_late():
                    return None
                after = state.deep_copy()
                if not after.consume_tokens(step):
                    continue
                longer = [*way, *step]
                if after.is_accepting():
                    return longer
                mask = mask_of(after, self._size)
                if until_value_ends and self._is_end_of_value(mask):
                    return longer
                # What is repeated a number of times lets the same pass at each time.
                known = len(longer) * counting, mask.tobytes()
                if known not in seen and len(longer) < MAX_TOKENS:
                    seen.add(known)
                    waiting.append((after, longer))
        return None

    def _is_late(self) -> bool:
        return time.thread_time() > self._until

    def _is_end_of_value(self, mask: Mask) -> bool:
        if mask[self._ranks.quotes].any():
            return True
        return bool(mask[self._ranks.ends].any()) and int(mask.sum()) < NUMBER_TOKENS

    def _steps(self, state: LLMatcher, letters: npt.NDArray[np.int64]) -> list[list[int]]:
        if forced := state.compute_ff_tokens():
            return [forced]
        mask = mask_of(state, self._size)
        single = letters[mask[letters]]
        words = [word for word in self._words if mask[word[0]]]
        if len(single):
            return [*words, *([int(token)] for token in single)]
        return [[int(token)] for token in np.flatnonzero(mask)[:64]]


def mask_of(matcher: LLMatcher, size: int) -> Mask:
    """Return which of the vocabulary's tokens may come next, shape (size,)."""
    packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    bits = np.unpackbits(packed, count=min(size, 8 * len(packed)), bitorder="little")
    mask = np.zeros(size, np.bool_)
    mask[: len(bits)] = bits
    return mask


def _holds(matcher: LLMatcher, way: list[int]) -> bool:
    if matcher.validate_tokens(way) < len(way):
        return False
    after = matcher.deep_copy()
    return after.consume_tokens(way) and after.is_accepting()
