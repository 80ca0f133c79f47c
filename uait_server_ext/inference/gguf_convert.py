"""Turn a GGUF file of the ``llama`` architecture into what each backend runs best.

=========== ====================================================================================
MLX         a directory that ``mlx_lm.load`` accepts; 4- and 8-bit blocks are carried over as is
llama.cpp   a GGUF with 16-bit weights. On x86 its 4-bit kernels round activations to 8 bits, which
            a small model does not survive (it no longer knows the capital of France), and they are
            slower at reading a prompt than the 16-bit ones
=========== ====================================================================================

Other architectures are refused by name: their norms, rotary layout and tokenizers differ, and a
conversion that is not tested against the original is not offered.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .gguf_file import (
    BLOCK_BYTES,
    BLOCK_WEIGHTS,
    F16,
    Q8_0,
    Array,
    GgufFile,
    Tensor,
    uint32_field,
    write_gguf,
)
from .gguf_tokenizer import write_tokenizer

SOURCE_FILE = "model.gguf"
HALF_FILE = "model-f16.gguf"
FILE_TYPE, FILE_TYPE_F16 = "general.file_type", 1

MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def to_mlx(source: Path, target: Path) -> None:
    """Write an MLX model directory for ``source/model.gguf``.

    Raises ``ValueError`` for an architecture, tensor type or tokenizer that is not supported.
    """
    gguf = _open(source)
    write_tokenizer(gguf.fields, target)
    weights: dict[str, Array] = {}
    widths: dict[str, int] = {}
    for tensor in gguf.tensors:
        module = _module(tensor.name)
        heads = _interleaved_heads(module, gguf.fields)
        if tensor.type in BLOCK_BYTES:
            widths[module] = 8 if tensor.type == Q8_0 else 4
            codes, scales, biases = tensor.quantised()
            parts = {"weight": _words(codes, widths[module]), "scales": scales, "biases": biases}
        else:
            parts = {"weight": tensor.weights().astype(np.float16)}
        for name, rows in parts.items():
            weights[f"{module}.{name}"] = rows if heads is None else _halves(rows, heads)
    save_file(weights, target / "model.safetensors", metadata={"format": "mlx"})
    config = _config(gguf.fields, tied="lm_head.weight" not in weights)
    if widths:
        config["quantization"] = _quantization(widths)
    (target / "config.json").write_text(json.dumps(config, indent=1), "utf-8")


def to_half(source: Path, target: Path) -> None:
    """Write ``model-f16.gguf`` and the tokenizer files for ``source/model.gguf``.

    Raises ``ValueError`` for an architecture, tensor type or tokenizer that is not supported.
    """
    gguf = _open(source)
    write_tokenizer(gguf.fields, target)
    fields = {**gguf.field_bytes, FILE_TYPE: uint32_field(FILE_TYPE, FILE_TYPE_F16)}
    write_gguf(target / HALF_FILE, list(fields.values()), [_half(x) for x in gguf.tensors])


def _open(source: Path) -> GgufFile:
    gguf = GgufFile(source / SOURCE_FILE)
    architecture = gguf.fields["general.architecture"]
    if architecture != "llama":
        raise ValueError(f"a GGUF of architecture '{architecture}', not 'llama'")
    return gguf


def _half(tensor: Tensor) -> Tensor:
    if len(tensor.shape) == 1:  # norms stay as they are
        return tensor
    return Tensor(tensor.name, tensor.shape, F16, tensor.weights().astype(np.float16))


def _module(name: str) -> str:
    """Return ``model.layers.3.mlp.up_proj`` for ``blk.3.ffn_up.weight``, and so on."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("blk."):
        return MODULES[stem]
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_MODULES[part]}"


def _interleaved_heads(module: str, fields: dict[str, Any]) -> int | None:
    """Return how many heads' rows llama.cpp has interleaved in a module, if it has."""
    key = {"q_proj": "head_count", "k_proj": "head_count_kv"}.get(module.rpartition(".")[2])
    return None if key is None else int(fields[f"llama.attention.{key}"])


def _halves(rows: Array, heads: int) -> Array:
    """Put each head's rows back into the two halves that ordinary rotary embedding expects.

    llama.cpp stores rotary pairs next to each other. Rows keep their content, so packed rows may
    be moved as they are.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _words(codes: Array, bits: int) -> Array:
    """Pack codes into 32-bit words, the first in the lowest bits."""
    packed = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(packed.reshape(codes.shape[0], -1)).view(np.uint32)


def _quantization(widths: dict[str, int]) -> dict[str, Any]:
    """Name the usual width once and the modules that differ by path, as mlx-lm reads it."""
    usual = Counter(widths.values()).most_common(1)[0][0]
    others = {
        module: {"group_size": BLOCK_WEIGHTS, "bits": bits}
        for module, bits in widths.items()
        if bits != usual
    }
    return {"group_size": BLOCK_WEIGHTS, "bits": usual, **others}


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
