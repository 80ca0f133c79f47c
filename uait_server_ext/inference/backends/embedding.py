"""Sentence embeddings and reranking in ONNX Runtime, from graphs that UAIT builds out of weights.

A cross-encoder reads a query and a text together. An encoder, which reads each alone, ranks by late
interaction: for every word of the query the nearest word of the text (MaxSim, as in ColBERT,
https://arxiv.org/abs/2004.12832), together with the similarity of the texts as wholes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Encoding, Tokenizer

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.onnx_graph import GRAPH_FILE, build_cross_encoder, build_encoder
from uait_server_ext.inference.vector_cache import GRAPH_FORM

from .base import Embedded, Loaded, Ranked

TOKENIZER_FILE = "tokenizer.json"
WHOLE_SHARE = 0.5  # of a late interaction's score that the whole texts' similarity makes

Array = npt.NDArray[Any]


class OnnxEmbedder:
    """A BERT on the CPU: a sentence encoder, or a cross-encoder."""

    def __init__(self, entry: CatalogueEntry, cache: ModelCache, threads: int) -> None:
        self._reranks = entry.kind == "rerank"
        folder = cache.derived(entry, GRAPH_FORM, partial(_build, entry=entry))
        self.loaded = Loaded(entry.context_tokens, entry.dimension)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        # of a pair the longer part is cut, which is the text
        self._tokenizer.enable_truncation(entry.context_tokens)
        self._tokenizer.enable_padding()
        self._query: tuple[str, Array, Array] | None = None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # waiting threads that spin take the cores that the server and the chat model need
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Return L2-normalised vectors (len(texts), dimension); a text is cut to the context."""
        encodings = self._tokenizer.encode_batch(list(texts))
        (vectors,) = self._run(["vectors"], encodings)
        return Embedded(np.asarray(vectors, dtype=np.float32), _counts(encodings))

    def rank(self, query: str, texts: Sequence[str]) -> Ranked:
        """Return a score of each text, higher where it is nearer to the query."""
        if not self._reranks:
            return self._interact(query, texts)
        encodings = self._tokenizer.encode_batch([(query, text) for text in texts])
        (scores,) = self._run(["scores"], encodings)
        return Ranked(np.asarray(scores, dtype=np.float32)[:, 0], _counts(encodings))

    def _interact(self, query: str, texts: Sequence[str]) -> Ranked:
        if self._query is None or self._query[0] != query:
            asked = self._tokenizer.encode_batch([query])
            vector, words = self._run(["vectors", "words"], asked)
            real = np.array(asked[0].special_tokens_mask) == 0
            self._query = query, vector[0], words[0][real]
        _, whole, wanted = self._query
        encodings = self._tokenizer.encode_batch(list(texts))
        vectors, words = self._run(["vectors", "words"], encodings)
        scores = WHOLE_SHARE * (vectors @ whole)
        if len(wanted):
            near = words @ wanted.T  # (texts, words of the text, words of the query)
            near[_column(encodings, "attention_mask") == 0] = -1
            scores = scores + (1 - WHOLE_SHARE) * near.max(axis=1).mean(axis=1)
        return Ranked(scores.astype(np.float32), _counts(encodings))

    def _run(self, outputs: list[str], encodings: list[Encoding]) -> list[Array]:
        inputs = {
            "tokens": _column(encodings, "ids"),
            "mask": _column(encodings, "attention_mask"),
        }
        if self._reranks:
            inputs["segments"] = _column(encodings, "type_ids")
        found: list[Array] = self._session.run(outputs, inputs)
        return found


def _column(encodings: list[Encoding], name: str) -> Array:
    return np.array([getattr(encoding, name) for encoding in encodings], dtype=np.int64)


def _counts(encodings: list[Encoding]) -> list[int]:
    return [sum(encoding.attention_mask) for encoding in encodings]


def _build(source: Path, target: Path, *, entry: CatalogueEntry) -> None:
    if entry.kind == "rerank":
        build_cross_encoder(source, target)
    else:
        build_encoder(source, target, entry.pooling)
    shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)
