"""Prompts that were read: found by what they share, within a budget, in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uait_server_ext.inference import machine

if not machine.has_module("mlx_lm"):
    pytest.skip("MLX is not installed here", allow_module_level=True)

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache

from uait_server_ext.inference.backends.mlx_cache import PrefixCache
from uait_server_ext.inference.backends.prompt_files import BLOCK, PromptFiles

TOKEN_BYTES = 2 * 4  # a key and a value


def caches(tokens: list[int]) -> list[Any]:
    """Return one layer's cache whose keys are the tokens themselves."""
    cache = KVCache()
    rows = mx.array(tokens, mx.float32).reshape(1, 1, -1, 1)
    cache.update_and_fetch(rows, -rows)
    cache.keys, cache.values = cache.keys_and_values()
    return [cache]


def held(found: tuple[list[Any], int] | None) -> list[int]:
    """Return the tokens that found caches hold."""
    if found is None:
        return []
    keys = found[0][0].keys_and_values()[0]
    tokens = [int(number) for number in keys.reshape(-1).tolist()]
    assert len(tokens) == found[1]
    return tokens


def test_the_longest_common_beginning_is_found_and_one_token_is_left_to_read() -> None:
    kept = PrefixCache(1 << 20)
    one, two = list(range(40)), [*range(20), *range(100, 130)]
    kept.keep("", one, caches(one))
    kept.keep("", two, caches(two))
    assert held(kept.find("", [*range(30), 7, 7])) == list(range(30))
    assert held(kept.find("", [*two, 1])) == two
    assert held(kept.find("", one)) == one[:-1]
    assert kept.find("", list(range(200, 230))) is None
    assert kept.find("", list(range(5))) is None
    assert kept.find("another adapter", one) is None


def test_what_is_found_may_be_written_to_and_what_is_kept_stays() -> None:
    kept = PrefixCache(1 << 20)
    tokens = list(range(40))
    kept.keep("", tokens, caches(tokens))
    found = kept.find("", [*range(20), 0])
    assert found is not None
    more = mx.full((1, 1, 30, 1), 999.0)
    found[0][0].update_and_fetch(more, more)
    mx.eval(found[0][0].state)
    assert held(kept.find("", [*tokens, 1])) == tokens


def test_a_longer_sequence_takes_the_place_of_its_beginnings() -> None:
    kept = PrefixCache(1 << 20)
    for length in (10, 20, 40, 30):
        kept.keep("", list(range(length)), caches(list(range(length))))
    assert len(kept) == 2  # 40, and 30 that came later: no loss, and no search for it
    kept.keep("", list(range(40)), caches(list(range(40))))
    assert len(kept) == 1


def test_the_least_recently_used_go_when_the_budget_is_spent() -> None:
    kept = PrefixCache(100 * TOKEN_BYTES)
    for start in (0, 100, 200):
        tokens = list(range(start, start + 30))
        kept.keep("", tokens, caches(tokens))
    assert kept.find("", [*range(30), 0]) is not None
    kept.keep("", list(range(300, 330)), caches(list(range(300, 330))))
    assert kept.size <= kept.budget
    assert kept.find("", [*range(30), 0]) is not None
    assert kept.find("", [*range(100, 130), 0]) is None
    kept.keep("", list(range(400, 600)), caches(list(range(400, 600))))  # larger than all
    assert len(kept) == 3


def test_caches_that_cannot_go_back_serve_as_a_whole_only() -> None:
    state = ArraysCache(1)
    state[0] = mx.zeros((1, 4))
    kept = PrefixCache(1 << 20)
    kept.keep("", list(range(20)), [state])
    kept.keep("", list(range(30)), [state])
    assert len(kept) == 2
    found = kept.find("", [*range(25), 99])
    assert found is not None
    assert found[1] == 20


LONG = list(range(BLOCK * 4 + 10))


def test_a_file_is_found_by_another_process_and_by_what_is_shared(tmp_path: Path) -> None:
    files = PromptFiles(tmp_path / "prompts", 1 << 20, "model")
    files.save("", LONG, caches(LONG))
    files.save("", LONG, caches(LONG))
    (path,) = (tmp_path / "prompts").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "prompts").stat().st_mode & 0o777 == 0o700

    again = PromptFiles(tmp_path / "prompts", 1 << 20, "model")
    assert held(again.find("", [*LONG, 5], 0)) == LONG[: BLOCK * 4]
    shorter = [*LONG[: BLOCK * 3 - 1], 9999, *LONG]
    assert held(again.find("", shorter, 0)) == LONG[: BLOCK * 2]
    assert again.find("", [*LONG, 5], BLOCK * 4) is None  # no better than what is known
    assert again.find("adapter", [*LONG, 5], 0) is None
    assert PromptFiles(tmp_path / "prompts", 1 << 20, "other").find("", [*LONG, 5], 0) is None


def test_a_file_tells_nobody_the_prompt(tmp_path: Path) -> None:
    secret = [71_717] * (BLOCK + 1)
    files = PromptFiles(tmp_path, 1 << 20, "model")
    files.save("", secret, caches([0] * len(secret)))
    (path,) = tmp_path.iterdir()
    assert b"71717" not in path.read_bytes()


def test_damaged_and_half_written_files_are_not_used(tmp_path: Path) -> None:
    files = PromptFiles(tmp_path, 1 << 20, "model")
    files.save("", LONG, caches(LONG))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.rename(tmp_path / f"{path.stem}.1.partial.safetensors")
    assert files.find("", [*LONG, 5], 0) is None
    for damaged in (b"", whole[:50], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert PromptFiles(tmp_path, 1 << 20, "model").find("", [*LONG, 5], 0) is None
    other = path.with_name("0" * 32 + ".safetensors")
    other.write_bytes(whole)  # not by its name
    assert PromptFiles(tmp_path, 1 << 20, "model").find("", [*LONG, 5], 0) is None


def test_files_keep_within_their_budget(tmp_path: Path) -> None:
    files = PromptFiles(tmp_path, 5_000, "model")
    for start in range(0, 5000, 1000):
        tokens = [start + at for at in range(BLOCK * 2)]
        files.save("", tokens, caches(tokens))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5_000
    assert files.find("", [*(4000 + at for at in range(BLOCK * 2)), 1], 0) is not None
