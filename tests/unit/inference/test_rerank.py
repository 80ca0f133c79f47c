"""Reranking: cross-encoders by the letter, late interaction without one, and which is used."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests.unit.inference.conftest import LOG
from tests.unit.inference.model_folders import (
    HEADS,
    LAYERS,
    WIDTH,
    cross_encoder_folder,
    encoder_folder,
)
from uait_server_ext.errors import Busy, ModelNotFound
from uait_server_ext.inference import rerank as rerank_module
from uait_server_ext.inference.backends.embedding import WHOLE_SHARE, OnnxEmbedder
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue, CatalogueEntry
from uait_server_ext.inference.library import Library, Wanted
from uait_server_ext.inference.models import DEFAULT_MODEL
from uait_server_ext.inference.protocol import Frame
from uait_server_ext.inference.registry import Registry
from uait_server_ext.inference.rerank import Reranker, reranking_model, shared_words
from uait_server_ext.inference.runner import ModelRunner
from uait_server_ext.inference.service import Inference

Array = Any
QUERY = "how high is the lamp"
TEXTS = [
    "the lamp is high",
    "a dog ran far away and away and away",
    "the cat sat on the mat",
    "",
    "low " * 80,  # cut
]


@pytest.fixture
def library(tmp_path: Path) -> Library:
    root = tmp_path / "models"
    root.mkdir()
    return Library.open(root)


class NumpyBert:
    """BERT by the letter of the paper, one text or pair at a time, in double precision."""

    def __init__(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        self.w = {k.removeprefix("bert."): v.astype(np.float64) for k, v in weights.items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def hidden(self, *texts: str, most: int) -> tuple[Array, Array]:
        """Return each token's vector, and which are of words."""
        self.tokenizer.enable_truncation(most)
        read = self.tokenizer.encode(texts[0], texts[1] if len(texts) > 1 else None)
        e = "embeddings."
        x = self.w[e + "word_embeddings.weight"][read.ids]
        x = x + self.w[e + "position_embeddings.weight"][: len(read.ids)]
        x = x + self.w[e + "token_type_embeddings.weight"][read.type_ids]
        x = self.normed(x, e + "LayerNorm")
        for n in range(LAYERS):
            layer = f"encoder.layer.{n}."
            mixed = self.attended(x, layer + "attention.")
            x = self.normed(x + mixed, layer + "attention.output.LayerNorm")
            wide = self.linear(x, layer + "intermediate.dense")
            wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
            x = self.normed(
                x + self.linear(wide, layer + "output.dense"), layer + "output.LayerNorm"
            )
        return x, np.array(read.special_tokens_mask) == 0

    def score(self, query: str, text: str) -> float:
        first = self.hidden(query, text, most=64)[0][0]
        pooled = np.tanh(self.linear(first, "pooler.dense"))
        return float(1 / (1 + np.exp(-self.linear(pooled, "classifier")[0])))

    def late(self, query: str, text: str) -> float:
        asked, of_words = self.hidden(query, most=32)
        read, _ = self.hidden(text, most=32)
        whole = unit(asked.mean(axis=0)) @ unit(read.mean(axis=0))
        near = (unit(asked[of_words]) @ unit(read).T).max(axis=1).mean()
        return float(WHOLE_SHARE * whole + (1 - WHOLE_SHARE) * near)

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def normed(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * self.w[name + ".weight"] + self.w[name + ".bias"]

    def attended(self, x: Array, name: str) -> Array:
        q, k, v = (
            self.linear(x, f"{name}self.{part}").reshape(len(x), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(WIDTH // HEADS)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), name + "output.dense")


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_cross_encoder_scores_by_the_letter(library: Library, tmp_path: Path) -> None:
    folder = cross_encoder_folder(tmp_path / "cross")
    entry = library.import_model(Wanted(folder))
    made = OnnxEmbedder(entry, library.cache, 1).rank(QUERY, TEXTS)
    oracle = NumpyBert(folder)
    expected = [oracle.score(QUERY, text) for text in TEXTS]
    np.testing.assert_allclose(made.scores, expected, atol=1e-4)
    assert len(set(np.round(expected, 3))) > 2
    assert made.tokens[0] == 12  # [CLS] five words [SEP] four words [SEP]
    assert max(made.tokens) == 64


def test_an_encoder_scores_by_late_interaction(library: Library, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    entry = library.import_model(Wanted(folder))
    backend = OnnxEmbedder(entry, library.cache, 1)
    oracle = NumpyBert(folder)
    for query in (QUERY, "cat", QUERY):
        expected = [oracle.late(query, text) for text in TEXTS]
        np.testing.assert_allclose(backend.rank(query, TEXTS).scores, expected, atol=1e-4)
    assert backend.rank("", TEXTS).scores.shape == (len(TEXTS),)


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_an_imported_encoder_embeds_by_the_letter(
    library: Library, tmp_path: Path, pooling: str
) -> None:
    folder = encoder_folder(tmp_path / "encoder", pooling=pooling)
    entry = library.import_model(Wanted(folder))
    made = OnnxEmbedder(entry, library.cache, 1).embed(TEXTS)
    oracle = NumpyBert(folder)
    for text, vector in zip(TEXTS, made.vectors, strict=True):
        hidden, _ = oracle.hidden(text, most=32)
        expected = unit(hidden[0] if pooling == "cls_token" else hidden.mean(axis=0))
        np.testing.assert_allclose(vector, expected, atol=1e-4)


def test_shared_words_count_by_how_rare_they_are() -> None:
    lamp, cat, both, neither = shared_words(
        "The lamps, the cat", ["the lamp", "the cats", "cat the LAMP!", "dogs"]
    )
    assert neither == 0
    assert both == pytest.approx(1)
    assert 0 < lamp < both
    assert cat < both
    assert list(shared_words("", ["a", "b"])) == [0, 0]


class Runner:
    """Gives each text its length as a score and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.held: asyncio.Event | None = None

    async def stream(self, message: dict[str, Any], **options: Any) -> AsyncGenerator[Frame, None]:
        if self.held is not None:
            await self.held.wait()
        texts = message["texts"]
        self.batches.append(texts)
        scores = np.array([len(text) / 100 for text in texts], "<f4")
        yield Frame({"shape": [len(texts)], "tokens": [1] * len(texts)}, scores.tobytes())


def reranker(kind: str, runner: Runner) -> Reranker:
    shipped = Catalogue.load().get("all-minilm-l6-v2")
    entry = shipped.model_copy(update={"kind": kind})
    return Reranker(entry, lambda: cast(ModelRunner, runner))


def test_scores_come_in_the_order_of_the_texts() -> None:
    runner = Runner()
    texts = ["x" * (n * 37 % 90) for n in range(50)]
    made = asyncio.run(reranker("rerank", runner).rerank("q", texts))
    assert made.scores == pytest.approx([len(text) / 100 for text in texts])
    assert made.note is None
    assert made.tokens == 50
    assert max(map(len, runner.batches)) <= 16
    assert len(runner.batches[0][0]) == max(map(len, texts))
    assert asyncio.run(reranker("rerank", runner).rerank("q", [])).scores == []


def test_without_a_cross_encoder_the_answer_says_so() -> None:
    made = asyncio.run(reranker("embedding", Runner()).rerank("lamp", ["a lamp", "a dog"]))
    assert made.scores[0] > made.scores[1]
    assert "No cross-encoder" in (made.note or "")


def test_too_many_calls_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerank_module, "MOST_CALLS", 2)

    async def main() -> None:
        runner = Runner()
        runner.held = asyncio.Event()
        one = reranker("rerank", runner)
        calls = [asyncio.create_task(one.rerank("q", ["a"])) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await one.rerank("q", ["a"])
        runner.held.set()
        await asyncio.gather(*calls)

    asyncio.run(main())


def test_an_installed_cross_encoder_is_chosen(library: Library, tmp_path: Path) -> None:
    embedding = library.catalogue.get("all-minilm-l6-v2")

    def chosen(model: str = DEFAULT_MODEL) -> CatalogueEntry:
        return reranking_model(library.catalogue, library.cache, embedding, model)

    assert chosen() == embedding
    cross = library.import_model(Wanted(cross_encoder_folder(tmp_path / "cross")))
    assert chosen() == cross
    assert chosen("cross") == cross
    assert chosen("all-minilm-l6-v2") == embedding
    with pytest.raises(ModelNotFound, match="no rerank model"):
        chosen("echo")
    (library.cache.source(cross) / "config.json").unlink()
    assert chosen() == embedding


@pytest.mark.slow
def test_the_service_reranks_with_both(model_cache: Path, tmp_path: Path) -> None:
    """A worker with the embedded model, then with an imported cross-encoder."""
    root = tmp_path / "models"
    root.mkdir()
    for name in ("all-minilm-l6-v2",):
        (root / name).symlink_to(model_cache / name)
    library = Library.open(root)

    async def main() -> None:
        catalogue = Catalogue.load(registry=Registry(root))
        inference = Inference(cache=ModelCache(root), catalogue=catalogue, log=LOG)
        passages = [
            "The stock market fell on Monday.",
            "The tower is 300 metres high.",
            "Bread is baked from flour.",
        ]
        try:
            late = await inference.rerank("How tall is the tower?", passages)
            assert int(np.argmax(late.scores)) == 1
            assert "No cross-encoder" in (late.note or "")
            library.import_model(Wanted(cross_encoder_folder(tmp_path / "cross")))
            cross = await inference.rerank(QUERY, TEXTS)
            assert (cross.model, cross.note) == ("cross", None)
            assert all(0 < score < 1 for score in cross.scores)
        finally:
            await inference.stop()

    asyncio.run(main())
