"""Examples as batches of token ids, in an order that follows from seed and step alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from uait_server_ext.errors import InvalidInput
from uait_server_ext.inference.prompt import defuse

from .data import Example

PAD_TO = 8  # few lengths, so that MLX need not compile for each
NAMED_PLACES = 5


class Tokens(NamedTuple):
    """An example as the model reads it; what is learned begins at ``start``."""

    ids: list[int]
    start: int


class Tokenizer:
    """The base model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._markers = [token.content for token in added if token.special]
        self.ends: frozenset[int] = frozenset(tokenizer.eos_token_ids)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the messages up to where the assistant begins to speak."""
        return self._ids(messages, add_generation_prompt=True)

    def example(self, example: Example, *, answer_only: bool) -> Tokens:
        """Return a whole example, up to the token that ends its answer."""
        ids = self._ids(example.turns, add_generation_prompt=False)
        last = next((at for at in range(len(ids) - 1, -1, -1) if ids[at] in self.ends), None)
        ids = ids if last is None else ids[: last + 1]
        if not answer_only:
            return Tokens(ids, 1)
        prompt = self.prompt(example.prompt)
        pairs = zip(prompt, ids, strict=False)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), len(prompt))
        return Tokens(ids, max(1, min(shared, len(ids) - 1)))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, up to the one that ends an answer."""
        end = next((at for at, token in enumerate(ids) if token in self.ends), len(ids))
        return str(self._tokenizer.decode(list(ids[:end]))).strip()

    def _ids(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            defuse(messages, self._markers),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def tokenized(
    tokenizer: Tokenizer, examples: Sequence[Example], *, longest: int, answer_only: bool
) -> list[Tokens]:
    """Return every example as tokens.

    Raises:
        InvalidInput: examples have more than ``longest`` tokens; none is cut silently.
    """
    found = [tokenizer.example(example, answer_only=answer_only) for example in examples]
    long = [(e.place, len(t.ids)) for e, t in zip(examples, found, strict=True)]
    long = [(place, length) for place, length in long if length > longest]
    if long:
        named = ", ".join(f"{place} ({length:,})" for place, length in long[:NAMED_PLACES])
        more = f" and {len(long) - NAMED_PLACES} more" if len(long) > NAMED_PLACES else ""
        raise InvalidInput(
            f"Examples have more tokens than the {longest:,} that fit: {named}{more}. Shorten or "
            "leave them out, or raise `max_tokens` where the model's context allows it.",
            errors=[
                {"location": place, "message": f"{length:,} tokens"} for place, length in long[:20]
            ],
        )
    return found


class Order:
    """Which examples make up a step's batch.

    Examples of like length go together; each epoch reads the batches in another order.
    """

    def __init__(self, examples: Sequence[Tokens], size: int, seed: int) -> None:
        by_length = sorted(range(len(examples)), key=lambda at: (len(examples[at].ids), at))
        self._batches = [by_length[at : at + size] for at in range(0, len(by_length), size)]
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def place(self, step: int) -> tuple[int, int]:
        """Return (epoch, position) that a step, counted from 0, reads."""
        return divmod(step, len(self._batches))

    def batch(self, step: int) -> list[int]:
        """Return the numbers of the examples of a step, counted from 0."""
        epoch, position = self.place(step)
        if epoch != self._epoch:
            self._order = list(range(len(self._batches)))
            random.Random(f"{self._seed}:{epoch}").shuffle(self._order)  # noqa: S311
            self._epoch = epoch
        return self._batches[self._order[position]]

    def in_order(self) -> list[list[int]]:
        """Return every batch once."""
        return self._batches


def digest_of(examples: Sequence[Tokens], *more: object) -> str:
    """Return what tells one data set, cut in one way, from others."""
    digest = hashlib.sha256(repr(more).encode())
    for ids, start in examples:
        digest.update(repr((ids, start)).encode())
    return digest.hexdigest()
