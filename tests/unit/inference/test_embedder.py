"""The embedding model: right numbers, right meaning, queries before ingests."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.unit.inference.real import RealModels, real_models
from uait_server_ext.errors import Busy, UaitError
from uait_server_ext.inference import embedder as embedder_module
from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import Catalogue
from uait_server_ext.inference.models import EmbedPurpose
from uait_server_ext.inference.onnx_graph import GRAPH_FILE, build_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Array = npt.NDArray[Any]
TEXTS = [
    "The cat sits on the mat.",
    "",
    "Žluťoučký kůň úpěl ďábelské ódy 😀",
    "def add(a, b):\n    return a + b",
    "word " * 400,  # cut at 256 tokens
    "A kitten rests upon a rug.",
]


@pytest.fixture(scope="module")
def real(model_cache: Path) -> Iterator[RealModels]:
    with real_models(model_cache) as models:
        yield models


@pytest.fixture(scope="module")
def source(model_cache: Path) -> Path:
    return ModelCache(model_cache).source(Catalogue.load().get("all-minilm-l6-v2"))


def embed(real: RealModels, texts: list[str], purpose: EmbedPurpose = "query") -> Array:
    async def main() -> Array:
        return await real.inference.embedder.embed(texts, purpose=purpose)

    return real.portal.call(main)


class NumpyBert:
    """BERT by the letter of the paper, one text at a time, in double precision."""

    def __init__(self, source: Path) -> None:
        self.w = {
            k: v.astype(np.float64) for k, v in load_file(source / "model.safetensors").items()
        }
        self.config = json.loads((source / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(256)

    def __call__(self, text: str) -> Array:
        ids = self.tokenizer.encode(text).ids
        e = "embeddings."
        x = self.w[e + "word_embeddings.weight"][ids]
        x = x + self.w[e + "position_embeddings.weight"][: len(ids)]
        x = x + self.w[e + "token_type_embeddings.weight"][0]
        x = self.normed(x, e + "LayerNorm")
        for n in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{n}."
            x = self.normed(
                x + self.attended(x, layer + "attention."), layer + "attention.output.LayerNorm"
            )
            wide = self.linear(x, layer + "intermediate.dense")
            wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
            x = self.normed(
                x + self.linear(wide, layer + "output.dense"), layer + "output.LayerNorm"
            )
        mean = x.mean(axis=0)
        vector: Array = mean / np.linalg.norm(mean)
        return vector

    def linear(self, x: Array, name: str) -> Array:
        projected: Array = x @ self.w[name + ".weight"].T + self.w[name + ".bias"]
        return projected

    def normed(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        result: Array = scaled * self.w[name + ".weight"] + self.w[name + ".bias"]
        return result

    def attended(self, x: Array, name: str) -> Array:
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self.linear(x, f"{name}self.{part}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), name + "output.dense")


def test_vectors_are_those_of_an_independent_bert(real: RealModels, source: Path) -> None:
    oracle = NumpyBert(source)
    expected = np.stack([oracle(text) for text in TEXTS])
    vectors = embed(real, TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert ((vectors * expected).sum(axis=1) > 0.9999).all()
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_a_vector_does_not_depend_on_its_neighbours(real: RealModels) -> None:
    """Batches are cut and sorted by length; rows come back in the order of the texts."""
    texts = [f"{'long ' * (n % 7 * 20)}text number {n}" for n in range(40)]
    together = embed(real, texts, "ingest")
    alone = np.concatenate([embed(real, [text]) for text in texts[:10]])
    np.testing.assert_allclose(together[:10], alone, atol=1e-5)
    assert len({row.tobytes() for row in together}) == 40


def test_a_text_that_is_no_unicode_fails_alone(real: RealModels) -> None:
    with pytest.raises(UaitError):
        embed(real, ["fine", "\ud800"])
    assert embed(real, ["fine"]).shape == (1, 384)


def test_no_texts_give_no_vectors(real: RealModels) -> None:
    assert embed(real, []).shape == (0, 384)


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        ("How tall is the tower?", "The tower is 300 metres high.", "Bread is baked from flour."),
        ("pet animals", "Cats and dogs live with people.", "The stock market fell on Monday."),
        ("How do I install it?", "Run pip install to set it up.", "The river floods in spring."),
    ],
)
def test_meaning_brings_texts_together(real: RealModels, query: str, near: str, far: str) -> None:
    asked, close, away = embed(real, [query, near, far])
    assert asked @ close > asked @ away + 0.15


def test_a_query_does_not_wait_for_an_ingest(real: RealModels) -> None:
    async def main() -> tuple[float, bool]:
        embedder = real.inference.embedder
        await embedder.embed(["warm"], purpose="query")
        passages = [f"{n} " + "a long passage of many words " * 40 for n in range(120)]
        ingest = asyncio.create_task(embedder.embed(passages, purpose="ingest"))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await embedder.embed(["a question"], purpose="query")
        waited, finished = time.monotonic() - began, ingest.done()
        ingest.cancel()
        await asyncio.wait([ingest])
        return waited, finished

    waited, ingest_finished = real.portal.call(main)
    assert not ingest_finished
    assert waited < 3  # one small batch, even on a crowded machine


def test_too_many_calls_are_busy(real: RealModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder_module, "MOST_CALLS", 2)

    async def main() -> None:
        embedder = real.inference.embedder
        calls = [embedder.embed([f"text {n}"], purpose="query") for n in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, Busy) for result in results] == [False, False, True]

    real.portal.call(main)


def test_the_graph_is_valid_onnx(model_cache: Path, source: Path, tmp_path: Path) -> None:
    build_encoder(source, tmp_path)
    model = onnx.load(tmp_path / GRAPH_FILE)
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.output] == ["vectors", "words"]
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "change",
    [{"model_type": "roberta"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative"}],
)
def test_another_encoder_is_refused(source: Path, tmp_path: Path, change: dict[str, str]) -> None:
    config = json.loads((source / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=next(itertools.chain(change.values()))):
        build_encoder(tmp_path, tmp_path)
