"""Attention caches of long prompts on disk: a document that was read yesterday is not read again.

A file belongs to one model, adapter and sequence of tokens. Its name is the digest of all three,
and it lists the digests of the sequence's beginnings, block by block, each made from the one
before: so a prompt finds what it shares with a file, and a file tells nobody the prompt. Files are
written beside, flushed and renamed, readable by their owner only, within a budget of bytes; the
least recently used go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import (
    can_trim_prompt_cache,
    load_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from safetensors import SafetensorError, safe_open

BLOCK = 64  # tokens
SUFFIX = ".safetensors"
BLOCKS_FIELD = "blocks"
DIGEST_BYTES = 16
FOLDER_MODE, FILE_MODE = 0o700, 0o600


class PromptFiles:
    """The prompt caches in one folder, for one model."""

    def __init__(self, folder: Path, budget: int, identity: str) -> None:
        self._folder = folder
        self._budget = budget
        self._identity = identity
        self._known: dict[str, list[str]] = {}
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def find(self, key: str, prompt: Sequence[int], least: int) -> tuple[list[Any], int] | None:
        """Return caches of the longest beginning of a prompt, and its length.

        None where no file has more than ``least`` tokens of it. At least one token of the prompt
        is left to be read; ``key`` tells adapters apart.
        """
        blocks = self._blocks(key, prompt[:-1])
        best, shared = None, least // BLOCK
        for path in self._paths():
            found = _common(self._digests(path), blocks)
            if found > shared:
                best, shared = path, found
        return None if best is None else self._load(best, shared * BLOCK)

    def save(self, key: str, tokens: Sequence[int], caches: list[Any]) -> None:
        """Write caches that hold these tokens, unless a file holds them already.

        Only whole blocks are found again, so that only they are written.
        """
        blocks = self._blocks(key, tokens)
        if not blocks or not can_trim_prompt_cache(caches):
            return
        path = self._folder / f"{blocks[-1]}{SUFFIX}"
        if any(_common(self._digests(other), blocks) == len(blocks) for other in self._paths()):
            return
        trim_prompt_cache(caches, len(tokens) - len(blocks) * BLOCK)
        partial = self._folder / f"{blocks[-1]}.{os.getpid()}.partial{SUFFIX}"
        try:
            save_prompt_cache(str(partial), caches, {BLOCKS_FIELD: ",".join(blocks)})
            partial.chmod(FILE_MODE)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        self._shrink()

    def _load(self, path: Path, length: int) -> tuple[list[Any], int] | None:
        held = len(self._digests(path)) * BLOCK
        try:
            os.utime(path)
            caches: list[Any] = load_prompt_cache(str(path))  # type: ignore[no-untyped-call]
            mx.eval([cache.state for cache in caches])
        except (OSError, RuntimeError, ValueError, KeyError):  # damaged, or gone by now
            path.unlink(missing_ok=True)
            return None
        trim_prompt_cache(caches, held - length)
        return caches, length

    def _blocks(self, key: str, tokens: Sequence[int]) -> list[str]:
        """Return the digests of a sequence's beginnings, one a block."""
        digest = hashlib.sha256(f"{self._identity}\0{key}".encode()).digest()
        held = np.asarray(tokens, "<i4")
        blocks = []
        for start in range(0, len(held) - BLOCK + 1, BLOCK):
            digest = hashlib.sha256(digest + held[start : start + BLOCK].tobytes()).digest()
            blocks.append(digest[:DIGEST_BYTES].hex())
        return blocks

    def _paths(self) -> list[Path]:
        return [path for path in self._folder.glob(f"*{SUFFIX}") if ".partial" not in path.name]

    def _digests(self, path: Path) -> list[str]:
        if path.name not in self._known:
            blocks: list[str] = []
            with contextlib.suppress(OSError, SafetensorError):
                with safe_open(path, "np") as file:
                    fields = file.metadata() or {}
                blocks = next((v for k, v in fields.items() if k.endswith(BLOCKS_FIELD)), "").split(
                    ","
                )
            self._known[path.name] = blocks if blocks[-1:] == [path.stem] else []
        return self._known[path.name]

    def _shrink(self) -> None:
        files = sorted(((path.stat(), path) for path in self._paths()), key=lambda x: x[0].st_mtime)
        size = sum(status.st_size for status, _ in files)
        while size > self._budget and files:
            status, path = files.pop(0)
            path.unlink(missing_ok=True)
            size -= status.st_size


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Return how many blocks two sequences have in common at their beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))
