"""Vectors that were made before are found again, within bounds, and never those of another text."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uait_server_ext.inference import vector_cache
from uait_server_ext.inference.embedder import BatchingEmbedder, batches
from uait_server_ext.inference.protocol import Frame
from uait_server_ext.inference.runner import ModelRunner
from uait_server_ext.inference.vector_cache import VectorCache

WIDTH = 8


def vectors_of(texts: Sequence[str]) -> Any:
    """A vector that tells its text, as float32."""
    return np.array([[float(len(text)), hash(text) % 97, *range(6)] for text in texts], np.float32)


def keep(cache: VectorCache, texts: Sequence[str], *, on_disk: bool = True) -> None:
    cache.keep(texts, vectors_of(texts), [len(text) for text in texts], on_disk=on_disk)


def found(cache: VectorCache, texts: Sequence[str]) -> list[str]:
    """Which of the texts are known; their vectors and tokens are checked."""
    known = []
    for text, made in zip(texts, cache.find(texts), strict=True):
        if made is not None:
            np.testing.assert_array_equal(made[0], vectors_of([text])[0])
            assert made[1] == len(text)
            known.append(text)
    return known


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.sqlite"


def test_vectors_survive_a_restart(path: Path) -> None:
    first = VectorCache(path, "maker", WIDTH)
    keep(first, ["a", "žluť", "", "\ud800"])
    first.close()
    second = VectorCache(path, "maker", WIDTH)
    assert found(second, ["a", "žluť", "", "\ud800", "b"]) == ["a", "žluť", "", "\ud800"]
    second.close()
    assert path.stat().st_mode & 0o077 == 0


def test_queries_are_in_memory_only(path: Path) -> None:
    cache = VectorCache(path, "maker", WIDTH)
    keep(cache, ["what is it?"], on_disk=False)
    assert cache.known(["what is it?"]) is not None
    assert cache.known(["what is it?", "and that?"]) is None
    cache.close()
    again = VectorCache(path, "maker", WIDTH)
    assert found(again, ["what is it?"]) == []
    again.close()


def test_no_text_is_on_the_disk(path: Path) -> None:
    cache = VectorCache(path, "maker", WIDTH)
    keep(cache, ["a very secret sentence"])
    cache.close()
    assert b"secret" not in path.read_bytes()


def test_another_maker_begins_anew(path: Path) -> None:
    cache = VectorCache(path, "model-1 onnx-3", WIDTH)
    keep(cache, ["a"])
    cache.close()
    other = VectorCache(path, "model-2 onnx-3", WIDTH)
    assert found(other, ["a"]) == []
    other.close()


def test_memory_is_bounded_by_last_use() -> None:
    cache = VectorCache(None, "maker", WIDTH, memory_bytes=3 * WIDTH * 4)
    keep(cache, ["a", "b", "c"])
    assert found(cache, ["a"]) == ["a"]
    keep(cache, ["d"])
    assert found(cache, ["a", "b", "c", "d"]) == ["a", "c", "d"]


def test_the_file_is_bounded_by_last_use(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    today = time.time()
    row = WIDTH * 4
    cache = VectorCache(path, "maker", WIDTH, memory_bytes=row, disk_bytes=100 * (row + 64))
    keep(cache, [f"old {n}" for n in range(50)])
    monkeypatch.setattr("time.time", lambda: today + vector_cache.DAY_SECONDS)
    assert len(found(cache, [f"old {n}" for n in range(10)])) == 10  # used today
    keep(cache, [f"new {n}" for n in range(90)])
    left = found(cache, [f"old {n}" for n in range(50)])
    assert left == [f"old {n}" for n in range(10)]
    assert len(found(cache, [f"new {n}" for n in range(90)])) == 90
    later = today + (vector_cache.KEPT_DAYS + 3) * vector_cache.DAY_SECONDS
    monkeypatch.setattr("time.time", lambda: later)
    cache.close()
    again = VectorCache(path, "maker", WIDTH)
    assert found(again, [f"new {n}" for n in range(90)]) == []
    again.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_file_that_is_damaged_costs_only_time(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    cache = VectorCache(path, "maker", WIDTH)
    found(cache, ["a"])
    keep(cache, ["a"])
    keep(cache, ["a"])
    cache.close()
    again = VectorCache(path, "maker", WIDTH)
    assert found(again, ["a"]) == ["a"]
    again.close()


def test_a_file_in_another_s_hands_costs_only_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VectorCache(path, "maker", WIDTH)
    keep(cache, ["a"])
    assert cache._file
    cache._file.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    keep(cache, ["b"])
    other.close()
    keep(cache, ["c"])
    cache.close()
    again = VectorCache(path, "maker", WIDTH)
    assert found(again, ["a", "b", "c"]) == ["a", "c"]
    again.clear()
    assert not path.exists()


def test_many_threads_share_one(path: Path) -> None:
    cache = VectorCache(path, "maker", WIDTH, memory_bytes=10 * WIDTH * 4)

    def work(number: int) -> None:
        for n in range(20):
            text = f"{number} {n}"
            keep(cache, [text])
            assert found(cache, [text]) == [text]

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found(cache, [f"{a} {b}" for a in range(4) for b in range(20)])) == 80
    cache.close()


class Runner:
    """Embeds by ``vectors_of`` and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def stream(self, message: dict[str, Any], **options: Any) -> AsyncGenerator[Frame, None]:
        texts = message["texts"]
        self.asked += texts
        made = vectors_of(texts)
        head = {"shape": list(made.shape), "tokens": [len(text) for text in texts]}
        yield Frame(head, made.tobytes())


def embedder(runner: Runner, cache: VectorCache | None) -> BatchingEmbedder:
    return BatchingEmbedder("m", WIDTH, lambda: cast(ModelRunner, runner), cache=cache)


def test_an_ingest_that_is_repeated_embeds_only_what_is_new(path: Path) -> None:
    cache = VectorCache(path, "maker", WIDTH)
    runner = Runner()
    texts = [f"passage {n}" for n in range(40)]

    async def main() -> None:
        own = embedder(runner, cache)
        first = await own.embed(texts, purpose="ingest")
        np.testing.assert_array_equal(first, vectors_of(texts))
        assert sorted(runner.asked) == sorted(texts)
        runner.asked.clear()
        changed = [*texts[:20], "new one", *texts[20:]]
        counted = await own.embed_counted(changed, purpose="ingest")
        np.testing.assert_array_equal(counted.vectors, vectors_of(changed))
        assert counted.tokens == [len(text) for text in changed]
        assert runner.asked == ["new one"]

    asyncio.run(main())
    cache.close()


def test_a_query_that_is_repeated_is_not_embedded_again(path: Path) -> None:
    runner = Runner()
    cache = VectorCache(path, "maker", WIDTH)

    async def main() -> None:
        own = embedder(runner, cache)
        for _ in range(3):
            await own.embed(["how high is it?"], purpose="query")
        assert runner.asked == ["how high is it?"]

    asyncio.run(main())
    assert not path.exists()  # nothing was ingested: no file


def test_without_a_cache_everything_is_embedded() -> None:
    runner = Runner()

    async def main() -> None:
        for _ in range(2):
            await embedder(runner, None).embed(["a", "b"], purpose="ingest")

    asyncio.run(main())
    assert len(runner.asked) == 4


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=60))
def test_batches_hold_every_row_once_and_waste_little(lengths: list[int]) -> None:
    cut = list(batches(lengths))
    assert sorted(row for batch in cut for row in batch) == list(range(len(lengths)))
    for batch in cut:
        own = [lengths[row] for row in batch]
        assert own == sorted(own, reverse=True)
        assert len(batch) == 1 or max(own) * len(batch) <= 5_000
