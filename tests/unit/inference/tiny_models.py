"""A tiny chat model with random weights, as an imported model of a cache: quick to tune."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from uait_server_ext.inference.cache import ModelCache
from uait_server_ext.inference.catalogue import CatalogueEntry, Imported, LocalFile

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS, HEAD = 4, 8


def tiny_entry(cache: ModelCache, name: str = "tiny") -> CatalogueEntry:
    """Put a tiny model into a cache and return its entry."""

    def fill(folder: Path) -> None:
        write_tiny(folder)

    files = tuple(
        LocalFile(name=file, size=size, sha256=digest)
        for file, (size, digest) in cache.keep(name, "source", fill).items()
    )
    return CatalogueEntry(
        id=name,
        kind="chat",
        format="mlx",
        description="For a test.",
        licence="BSD-3-Clause",
        size_bytes=sum(file.size for file in files),
        memory_bytes=1,
        context_tokens=256,
        imported=Imported(path="tiny", files=files),
    )


def write_tiny(folder: Path) -> None:
    """Write weights, configuration, tokenizer and chat template of a two-block Llama."""
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab_size()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    model = {
        "model_type": "llama",
        **SIZES,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    (folder / "config.json").write_text(json.dumps(model), "utf-8")
    save_file(dict(_weights(vocabulary)), folder / "model.safetensors", {"format": "mlx"})


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer


def _weights(vocabulary: int) -> Iterator[tuple[str, Any]]:
    draw = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> Any:
        return (draw.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    width, inner, layers = SIZES.values()
    yield "model.embed_tokens.weight", matrix(vocabulary, width)
    yield "model.norm.weight", np.ones(width, np.float32)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{stem}.self_attn.{name}.weight", matrix(width, HEADS * HEAD)
        for name in ("gate_proj", "up_proj"):
            yield f"{stem}.mlp.{name}.weight", matrix(inner, width)
        yield f"{stem}.mlp.down_proj.weight", matrix(width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{stem}.{name}.weight", np.ones(width, np.float32)


def write_lines(path: Path, lines: list[Any]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path
