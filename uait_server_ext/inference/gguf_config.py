"""What a GGUF file says of a model's shape, as the configuration that mlx-lm reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from .gguf_file import Array, GgufFile

ARCHITECTURES = ("llama", "gemma3")
# llama.cpp's constants for Gemma 3, which its files do not hold
GEMMA_LOCAL_ROPE = 10_000.0
GEMMA_GLOBAL_EVERY = 6
GEMMA_27B_LAYERS = 62
# of Llama 3.1 and later; a file holds only the factors that follow from them
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192


def model_config(gguf: GgufFile, *, tied: bool) -> dict[str, Any]:
    """Return ``config.json`` of the model.

    Raises:
        ValueError: a field is missing, or the file asks for what is not supported.
    """
    fields = gguf.fields
    architecture = fields["general.architecture"]
    stem = f"{architecture}."
    own = {name.removeprefix(stem): x for name, x in fields.items() if name.startswith(stem)}
    try:
        common = {
            "hidden_size": own["embedding_length"],
            "intermediate_size": own["feed_forward_length"],
            "num_hidden_layers": own["block_count"],
            "num_attention_heads": own["attention.head_count"],
            "num_key_value_heads": own["attention.head_count_kv"],
            "max_position_embeddings": own["context_length"],
            "rms_norm_eps": round(own["attention.layer_norm_rms_epsilon"], 12),
            "rope_theta": own["rope.freq_base"],
            "tie_word_embeddings": tied,
            "vocab_size": len(fields["tokenizer.ggml.tokens"]),
            "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        }
        scaling = _rope_scaling(gguf, own)
        if scaling is not None:
            common["rope_scaling"] = scaling
        return common | (_llama(own) if architecture == "llama" else _gemma(own))
    except KeyError as error:
        raise ValueError(f"a GGUF without the field {stem}{error.args[0]}") from None


def _llama(own: dict[str, Any]) -> dict[str, Any]:
    width = own["embedding_length"] // own["attention.head_count"]
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
    }
    if (head := own.get("attention.key_length", width)) != width:
        config["head_dim"] = head
    if own.get("rope.dimension_count", head) != head:
        raise ValueError("a GGUF that rotates only a part of each head, which is not supported")
    return config


def _gemma(own: dict[str, Any]) -> dict[str, Any]:
    head = own["attention.key_length"]
    large = own["block_count"] == GEMMA_27B_LAYERS
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": head,
        "query_pre_attn_scalar": (
            own["embedding_length"] // own["attention.head_count"] if large else head
        ),
        "rope_local_base_freq": GEMMA_LOCAL_ROPE,
        "sliding_window": own["attention.sliding_window"],
        "sliding_window_pattern": GEMMA_GLOBAL_EVERY,
    }


def _rope_scaling(gguf: GgufFile, own: dict[str, Any]) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "type": "linear", "factor": own["rope.scaling.factor"]}
    if kind != "none":
        raise ValueError(f"a GGUF with rotary scaling of type '{kind}', which is not supported")
    found = [tensor for tensor in gguf.tensors if tensor.name == "rope_freqs.weight"]
    if not found:
        return None
    factors = found[0].weights()
    factor = float(factors.max())
    expected = llama3_factors(len(factors), own["rope.freq_base"], factor)
    if not np.allclose(factors, expected, rtol=1e-4):
        raise ValueError("a GGUF with rotary factors of its own, which are not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "original_max_position_embeddings": LLAMA3_CONTEXT,
        **LLAMA3,
    }


def llama3_factors(count: int, base: float, factor: float) -> Array:
    """Return by what Llama 3.1 divides each rotary frequency."""
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    frequencies = base ** -(np.arange(count, dtype=np.float64) / count)
    turns = LLAMA3_CONTEXT * frequencies / (2 * np.pi)
    smooth = ((turns - low) / (high - low)).clip(0, 1)
    divided: Array = 1 / ((1 - smooth) / factor + smooth)
    return divided
