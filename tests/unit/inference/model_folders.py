"""Small model folders as people have them: chat models, encoders, cross-encoders, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "dog", "ran"),
    *("far", "away", "lamp", "is", "high", "low", "how", "and"),
]
WIDTH, HEADS, LAYERS, FEED = 32, 4, 2, 64
CHAT = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "intermediate_size": FEED,
    "num_attention_heads": HEADS,
    "rms_norm_eps": 1e-5,
    "vocab_size": 16,
    "max_position_embeddings": 128,
}
BERT = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), "utf-8")


def chat_folder(folder: Path, *, config: dict[str, Any] | None = None) -> Path:
    """Write a folder in MLX's format: right in form, without sense."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CHAT | (config or {}))
    write_json(folder / "tokenizer.json", {})
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ messages }}{{ tools }}"})
    save_file({"model.norm.weight": np.ones(WIDTH, np.float16)}, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


def bert_tokenizer(path: Path) -> None:
    """Write a tokenizer of whole words that marks pairs as BERT's does."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(path))


def bert_weights(*, prefix: str = "", seed: int = 0) -> dict[str, Any]:
    """Random weights of a small BERT, large enough that texts differ."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32) * 0.3

    weights = {
        "embeddings.word_embeddings.weight": normal(len(WORDS) + 4, WIDTH) * 3,
        "embeddings.position_embeddings.weight": normal(64, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
        "embeddings.LayerNorm.weight": 1 + normal(WIDTH),
        "embeddings.LayerNorm.bias": normal(WIDTH),
        "pooler.dense.weight": normal(WIDTH, WIDTH),
        "pooler.dense.bias": normal(WIDTH),
    }
    shapes = {
        "attention.self.query": (WIDTH, WIDTH),
        "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (FEED, WIDTH),
        "output.dense": (WIDTH, FEED),
    }
    for layer in range(LAYERS):
        stem = f"encoder.layer.{layer}."
        for name, shape in shapes.items():
            weights[f"{stem}{name}.weight"] = normal(*shape)
            weights[f"{stem}{name}.bias"] = normal(shape[0])
        for name in ("attention.output", "output"):
            weights[f"{stem}{name}.LayerNorm.weight"] = 1 + normal(WIDTH)
            weights[f"{stem}{name}.LayerNorm.bias"] = normal(WIDTH)
    named = {prefix + name: value for name, value in weights.items()}
    if prefix:
        named["classifier.weight"] = normal(1, WIDTH)
        named["classifier.bias"] = normal(1)
    return named


def encoder_folder(folder: Path, *, pooling: str = "mean_tokens") -> Path:
    """Write a sentence encoder as sentence-transformers does."""
    (folder / "1_Pooling").mkdir(parents=True)
    write_json(folder / "config.json", BERT | {"architectures": ["BertModel"]})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32})
    write_json(folder / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True})
    bert_tokenizer(folder / "tokenizer.json")
    save_file(bert_weights(), folder / "model.safetensors")
    return folder


def cross_encoder_folder(folder: Path, *, labels: int = 1) -> Path:
    """Write a cross-encoder of that many labels."""
    folder.mkdir(parents=True)
    more = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(number): f"LABEL_{number}" for number in range(labels)},
    }
    write_json(folder / "config.json", BERT | more)
    bert_tokenizer(folder / "tokenizer.json")
    save_file(bert_weights(prefix="bert."), folder / "model.safetensors")
    return folder


def adapter_folder(folder: Path, *, value: float = 1.0) -> Path:
    """Write what mlx-lm writes of a LoRA adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"a.lora_a": np.full((2, 2), value, np.float32)}, folder / "adapters.safetensors")
    write_json(folder / "adapter_config.json", {"fine_tune_type": "lora", "num_layers": 1})
    return folder
