"""Attention caches of prompts and answers, kept in memory: what a new prompt shares with one of
them is not read again.

Entries are whole token sequences; the longest common beginning wins, whoever made it. The least
recently used go first when the budget of bytes is spent. ``mlx_lm``'s own LRU cache is not used:
it does not count a hit as use, and walks a tree of one Python dict a token.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

LEAST_TOKENS = 8  # what is shorter is read as quickly as found
Tokens = npt.NDArray[np.int32]


@dataclass(eq=False)  # arrays have no equality
class _Entry:
    key: Hashable
    tokens: Tokens
    caches: list[Any]
    size: int
    used: int


class PrefixCache:
    """Attention caches by the tokens that they hold, within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: list[_Entry] = []
        self._clock = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that all entries hold."""
        return sum(entry.size for entry in self._entries)

    def find(self, key: Hashable, prompt: Sequence[int]) -> tuple[list[Any], int] | None:
        """Return a copy of the caches that hold the longest beginning of a prompt, and its length.

        At least one token of the prompt is left to be read. ``key`` tells weights apart.
        """
        wanted = np.asarray(prompt[:-1], np.int32)
        best, longest = None, LEAST_TOKENS - 1
        for entry in self._entries:
            if entry.key != key:
                continue
            shared = common_prefix(entry.tokens, wanted)
            whole = shared == len(entry.tokens)
            if shared > longest and (whole or can_trim_prompt_cache(entry.caches)):
                best, longest = entry, shared
        if best is None:
            return None
        best.used = next(self._clock)
        caches = copy.deepcopy(best.caches)  # new arrays over the same memory, copied when written
        if longest < len(best.tokens):
            trim_prompt_cache(caches, len(best.tokens) - longest)
        return caches, longest

    def keep(self, key: Hashable, tokens: Sequence[int], caches: list[Any]) -> None:
        """Keep caches that hold these tokens; nobody else may write to them afterwards."""
        mx.eval([cache.state for cache in caches])  # else they hold the batch they came out of
        size = sum(cache.nbytes for cache in caches)
        if size > self.budget or len(tokens) < LEAST_TOKENS:
            return
        held = np.asarray(tokens, np.int32)
        beginnings = can_trim_prompt_cache(caches)  # a longer one serves where a shorter did
        self._entries = [
            entry for entry in self._entries if not _covered(entry, key, held, beginnings)
        ]
        self._entries.append(_Entry(key, held, caches, size, next(self._clock)))
        self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def _shrink(self) -> None:
        while self.size > self.budget:
            self._entries.remove(min(self._entries, key=lambda entry: entry.used))


def common_prefix(left: Tokens, right: Tokens) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    shortest = min(len(left), len(right))
    different = np.flatnonzero(left[:shortest] != right[:shortest])
    return int(different[0]) if len(different) else shortest


def _covered(entry: _Entry, key: Hashable, held: Tokens, beginnings: bool) -> bool:
    if entry.key != key or len(entry.tokens) > len(held):
        return False
    same = len(entry.tokens) == len(held)
    return (same or beginnings) and common_prefix(entry.tokens, held) == len(entry.tokens)
