"""Sentence embeddings in ONNX Runtime, from a graph that UAIT builds out of the model's weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry
from uait_server_ext.inference.onnx_graph import GRAPH_FILE, build_encoder

from .base import Loaded

if TYPE_CHECKING:
    from uait_server_ext.inference.models import Vectors

FORM = "onnx-2"  # raise the number when the graph changes
TOKENIZER_FILE = "tokenizer.json"


class OnnxEmbedder:
    """A BERT sentence encoder on the CPU."""

    def __init__(self, entry: CatalogueEntry, cache: ModelCache, threads: int) -> None:
        assert entry.dimension is not None
        folder = cache.derived(entry, FORM, _build)
        self.loaded = Loaded(entry.context_tokens, entry.dimension)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.enable_truncation(entry.context_tokens)
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # waiting threads that spin take the cores that the server and the chat model need
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return L2-normalised vectors (len(texts), dimension); a text is cut at 256 tokens."""
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        (vectors,) = self._session.run(["vectors"], {"tokens": tokens, "mask": mask})
        return np.asarray(vectors, dtype=np.float32)


def _build(source: Path, target: Path) -> None:
    build_encoder(source, target)
    shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)
