"""GGUF files: read exactly, carried over losslessly, refused by name where they are not known."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from uait_server_ext.inference.gguf_convert import HALF_FILE, to_half, to_mlx
from uait_server_ext.inference.gguf_file import (
    BLOCK_BYTES,
    F16,
    F32,
    Q4_0,
    Q4_1,
    Q8_0,
    Array,
    GgufFile,
    Tensor,
    string_bytes,
    uint32_field,
    write_gguf,
)

WIDTH, HEADS, KV_HEADS, FEED = 64, 4, 2, 96
TOKENS = ["<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "Ċ"]


def string_field(name: str, text: str) -> bytes:
    return string_bytes(name) + struct.pack("<I", 8) + string_bytes(text)


def float_field(name: str, value: float) -> bytes:
    return string_bytes(name) + struct.pack("<If", 6, value)


def array_field(name: str, kind: int, items: list[bytes]) -> bytes:
    return string_bytes(name) + struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


def tiny_fields(**changes: bytes) -> list[bytes]:
    """Fields of a one-layer model with SmolLM's kind of tokenizer."""
    fields = {
        "general.architecture": string_field("general.architecture", "llama"),
        "general.file_type": uint32_field("general.file_type", 3),
        "llama.attention.layer_norm_rms_epsilon": float_field(
            "llama.attention.layer_norm_rms_epsilon", 1e-5
        ),
        "llama.rope.freq_base": float_field("llama.rope.freq_base", 100_000.0),
        "tokenizer.ggml.model": string_field("tokenizer.ggml.model", "gpt2"),
        "tokenizer.ggml.pre": string_field("tokenizer.ggml.pre", "smollm"),
        "tokenizer.chat_template": string_field("tokenizer.chat_template", "{{ messages }}"),
        "tokens": array_field("tokenizer.ggml.tokens", 8, [string_bytes(t) for t in TOKENS]),
        "types": array_field(
            "tokenizer.ggml.token_type", 5, [struct.pack("<i", n) for n in (3, 3, 1, 1, 1, 1, 1)]
        ),
        "merges": array_field("tokenizer.ggml.merges", 8, [string_bytes("a b")]),
    }
    numbers = {
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEED,
        "llama.block_count": 1,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.context_length": 128,
        "tokenizer.ggml.eos_token_id": 1,
    }
    fields |= {name: uint32_field(name, value) for name, value in numbers.items()}
    return list((fields | changes).values())


def blocks(kind: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """A quantised tensor of random codes and tame scales."""
    generator = np.random.default_rng(seed)
    count = shape[0] * shape[1] // 32
    raw = generator.integers(0, 256, (count, BLOCK_BYTES[kind]), dtype=np.uint8)
    halves = 2 if kind == Q4_1 else 1
    scales = generator.normal(size=(count, halves)).astype(np.float16)
    raw[:, : 2 * halves] = scales.view(np.uint8)
    return Tensor("", shape, kind, raw.reshape(-1))


def tiny_tensors() -> list[Tensor]:
    def matrix(name: str, kind: int, rows: int, columns: int) -> Tensor:
        return Tensor(name, (rows, columns), kind, blocks(kind, (rows, columns)).data)

    def norm(name: str) -> Tensor:
        return Tensor(name, (WIDTH,), F32, np.arange(WIDTH, dtype=np.float32).view(np.uint8))

    kv = WIDTH * KV_HEADS // HEADS
    return [
        matrix("token_embd.weight", Q8_0, len(TOKENS), WIDTH),
        norm("output_norm.weight"),
        norm("blk.0.attn_norm.weight"),
        norm("blk.0.ffn_norm.weight"),
        matrix("blk.0.attn_q.weight", Q4_1, WIDTH, WIDTH),
        matrix("blk.0.attn_k.weight", Q4_1, kv, WIDTH),
        matrix("blk.0.attn_v.weight", Q4_0, kv, WIDTH),
        matrix("blk.0.attn_output.weight", Q4_1, WIDTH, WIDTH),
        matrix("blk.0.ffn_gate.weight", Q4_1, FEED, WIDTH),
        matrix("blk.0.ffn_up.weight", Q4_1, FEED, WIDTH),
        matrix("blk.0.ffn_down.weight", Q4_1, WIDTH, FEED),
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_gguf(folder / "model.gguf", tiny_fields(), tiny_tensors())
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def decoded(kind: int, block: bytes) -> list[float]:
    """Decode one block by the letter of the format."""
    (scale,) = struct.unpack("<e", block[:2])
    if kind == Q8_0:
        return [scale * code for code in struct.unpack("<32b", block[2:])]
    nibbles = block[-16:]
    codes = [byte & 15 for byte in nibbles] + [byte >> 4 for byte in nibbles]
    if kind == Q4_0:
        return [scale * (code - 8) for code in codes]
    (least,) = struct.unpack("<e", block[2:4])
    return [scale * code + least for code in codes]


@given(kind=st.sampled_from([Q4_0, Q4_1, Q8_0]), seed=st.integers(0, 1000))
def test_blocks_are_decoded_by_the_letter(kind: int, seed: int) -> None:
    tensor = blocks(kind, (3, 64), seed)
    expected = [decoded(kind, block.tobytes()) for block in tensor.blocks().reshape(6, -1)]
    np.testing.assert_allclose(
        tensor.weights(), np.array(expected).reshape(3, 64), rtol=1e-5, atol=1e-5
    )


def test_a_file_is_read_as_it_was_written(source: Path) -> None:
    gguf = GgufFile(source / "model.gguf")
    assert gguf.fields["tokenizer.ggml.tokens"] == TOKENS
    assert gguf.fields["llama.rope.freq_base"] == 100_000.0
    for read, written in zip(gguf.tensors, tiny_tensors(), strict=True):
        assert (read.name, read.shape, read.type) == (written.name, written.shape, written.type)
        np.testing.assert_array_equal(read.data, written.data)


def unpacked(weights: dict[str, Array], module: str, bits: int) -> Array:
    """Decode MLX's affine layout by its definition: code * scale + bias, low bits first."""
    words = weights[f"{module}.weight"]
    codes = (words[..., None] >> (np.arange(0, 32, bits, dtype=np.uint32))) & (2**bits - 1)
    codes = codes.reshape(words.shape[0], -1, 32).astype(np.float32)
    scale, bias = (
        weights[f"{module}.{x}"][..., None].astype(np.float32) for x in ("scales", "biases")
    )
    rows: Array = (codes * scale + bias).reshape(words.shape[0], -1)
    return rows


def test_mlx_weights_are_the_same_numbers(source: Path, target: Path) -> None:
    to_mlx(source, target)
    weights = load_file(target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    usual = config["quantization"]["bits"]
    originals = {tensor.name: tensor.weights() for tensor in tiny_tensors()}

    def same(module: str, original: Array) -> None:
        bits = config["quantization"].get(module, {"bits": usual})["bits"]
        np.testing.assert_array_equal(unpacked(weights, module, bits), original)

    layer = "model.layers.0"
    same("model.embed_tokens", originals["token_embd.weight"])
    same(f"{layer}.mlp.down_proj", originals["blk.0.ffn_down.weight"])
    same(f"{layer}.self_attn.v_proj", originals["blk.0.attn_v.weight"])
    # a head's rows 0, 2, 4, ... are its first half and 1, 3, 5, ... its second
    for name, heads in (("q", HEADS), ("k", KV_HEADS)):
        rows = originals[f"blk.0.attn_{name}.weight"].reshape(heads, -1, WIDTH)
        ordered = np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1).reshape(-1, WIDTH)
        same(f"{layer}.self_attn.{name}_proj", ordered)
    norm = weights[f"{layer}.post_attention_layernorm.weight"]
    np.testing.assert_array_equal(norm, np.arange(WIDTH, dtype=np.float16))
    assert config["tie_word_embeddings"] is True
    assert config["rope_theta"] == 100_000.0


def test_half_precision_keeps_fields_and_numbers(source: Path, target: Path) -> None:
    to_half(source, target)
    before, after = GgufFile(source / "model.gguf"), GgufFile(target / HALF_FILE)
    assert after.fields == before.fields | {"general.file_type": 1}
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert new.type == (F32 if len(old.shape) == 1 else F16)
        np.testing.assert_array_equal(
            new.weights(), old.weights().astype(np.float16 if new.type == F16 else np.float32)
        )


def test_the_tokenizer_comes_along(source: Path, target: Path) -> None:
    to_half(source, target)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert tokenizer.encode("ab a\n<|im_end|>").tokens == ["ab", "Ġ", "a", "Ċ", "<|im_end|>"]
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((target / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": string_field("general.architecture", "gemma3")}, "gemma3"),
        ({"tokenizer.ggml.pre": string_field("tokenizer.ggml.pre", "qwen2")}, "qwen2"),
    ],
)
def test_other_models_are_refused_by_name(
    source: Path, target: Path, changes: dict[str, Any], said: str
) -> None:
    write_gguf(source / "model.gguf", tiny_fields(**changes), tiny_tensors())
    with pytest.raises(ValueError, match=said):
        to_mlx(source, target)


def test_what_is_no_gguf_or_has_unknown_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(ValueError, match="not a GGUF"):
        GgufFile(path)
    write_gguf(path, [], [Tensor("odd", (32,), 14, np.zeros(32, np.uint8))])
    with pytest.raises(ValueError, match="tensor odd has type 14"):
        GgufFile(path)
