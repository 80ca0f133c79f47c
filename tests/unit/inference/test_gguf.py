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

from uait_server_ext.inference.gguf_config import llama3_factors
from uait_server_ext.inference.gguf_convert import HALF_FILE, to_half, to_mlx
from uait_server_ext.inference.gguf_file import (
    Array,
    GgufFile,
    Tensor,
    string_bytes,
    uint32_field,
    write_gguf,
)
from uait_server_ext.inference.gguf_quants import (
    BF16,
    F16,
    F32,
    LAYOUTS,
    NAMES,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    quantise,
    weights,
)

WIDTH, HEADS, KV_HEADS, FEED = 64, 4, 2, 96
# where in a block its 16-bit numbers are
HALVES = {
    Q4_0: (0,), Q4_1: (0, 2), Q5_0: (0,), Q5_1: (0, 2), Q8_0: (0,), Q2_K: (80, 82), Q3_K: (108,),
    Q4_K: (0, 2), Q5_K: (0, 2), Q6_K: (208,),
}  # fmt: skip
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
    layout = LAYOUTS[kind]
    count = shape[0] * shape[1] // layout.weights
    raw = generator.integers(0, 256, (count, layout.bytes), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = generator.normal(size=(count, 1)).astype(np.float16)
        raw[:, at : at + 2] = scales.view(np.uint8)
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


def decoded_super(kind: int, block: bytes) -> list[float]:
    """Decode one Q4_K, Q5_K or Q6_K block of 256 weights by the letter of the format."""
    if kind == Q6_K:
        (scale,) = struct.unpack("<e", block[208:])
        scales = struct.unpack("<16b", block[192:208])
        weights = []
        for i in range(256):
            half, quarter, place = i // 128, i % 128 // 32, i % 32
            low = block[64 * half + 32 * (quarter % 2) + place] >> (4 * (quarter // 2)) & 15
            high = block[128 + 32 * half + place] >> (2 * quarter) & 3
            weights.append(scale * scales[i // 16] * ((low | high << 4) - 32))
        return weights
    scale, least = struct.unpack("<ee", block[:4])
    packed = block[4:16]
    weights = []
    for i in range(256):
        group, place = i // 32, i % 32
        if group < 4:
            number, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            number = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        codes = block[16 + (32 if kind == Q5_K else 0) :]
        code = codes[32 * (group // 2) + place] >> (4 * (group % 2)) & 15
        if kind == Q5_K:
            code |= (block[16 + place] >> group & 1) << 4
        weights.append(scale * number * code - least * minimum)
    return weights


def decoded(kind: int, block: bytes) -> list[float]:
    """Decode one block by the letter of the format."""
    if kind in (Q4_K, Q5_K, Q6_K):
        return decoded_super(kind, block)
    (scale,) = struct.unpack("<e", block[:2])
    if kind == Q8_0:
        return [scale * code for code in struct.unpack("<32b", block[2:])]
    nibbles = block[-16:]
    codes = [byte & 15 for byte in nibbles] + [byte >> 4 for byte in nibbles]
    if kind in (Q5_0, Q5_1):
        (fifth,) = struct.unpack("<I", block[-20:-16])
        codes = [code | (fifth >> i & 1) << 4 for i, code in enumerate(codes)]
    if kind == Q5_0:
        return [scale * (code - 16) for code in codes]
    if kind == Q4_0:
        return [scale * (code - 8) for code in codes]
    (least,) = struct.unpack("<e", block[2:4])
    return [scale * code + least for code in codes]


BY_THE_LETTER = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K]


@given(kind=st.sampled_from(BY_THE_LETTER), seed=st.integers(0, 1000))
def test_blocks_are_decoded_by_the_letter(kind: int, seed: int) -> None:
    tensor = blocks(kind, (3, 256), seed)
    expected = [
        decoded(kind, block.tobytes()) for block in tensor.data.reshape(-1, tensor.block_bytes)
    ]
    np.testing.assert_allclose(
        tensor.weights(), np.array(expected).reshape(3, 256), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", list(LAYOUTS), ids=NAMES.get)
def test_blocks_are_those_of_the_reference(kind: int) -> None:
    gguf = pytest.importorskip("gguf", reason="the reference package is for tests only")
    tensor = blocks(kind, (5, 256))
    raw = tensor.data.reshape(-1, tensor.block_bytes)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(weights(kind, raw).reshape(-1), expected.reshape(-1))


@given(seed=st.integers(0, 1000), width=st.floats(1e-6, 10), shift=st.floats(-5, 5))
def test_what_is_quantised_anew_is_off_by_half_a_step(
    seed: int, width: float, shift: float
) -> None:
    wide = (np.random.default_rng(seed).normal(size=(2, 64)) * width + shift).astype(np.float32)
    codes, scales, biases = quantise(wide)
    back = codes * scales[..., None] + biases[..., None]
    off = np.abs(back - wide.reshape(back.shape))
    # at either end of the range the bias's own rounding comes to it
    assert (off <= 0.501 * scales[..., None] + np.abs(biases[..., None]) * 2.0**-11).all()


def test_brain_floats_are_read() -> None:
    wide = np.array([[1.0, -2.5, 3.140625, 0.0]], np.float32)
    raw = (wide.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(Tensor("x", (1, 4), BF16, raw).weights(), wide)


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
        ({"general.architecture": string_field("general.architecture", "qwen3")}, "qwen3"),
        ({"split": uint32_field("split.count", 3)}, "gguf-split"),
        (
            {"llama.rope.dimension_count": uint32_field("llama.rope.dimension_count", 8)},
            "part of each head",
        ),
        (
            {"llama.rope.scaling.type": string_field("llama.rope.scaling.type", "yarn")},
            "yarn",
        ),
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
    write_gguf(path, [], [Tensor("odd", (32,), 19, np.zeros(32, np.uint8))])
    with pytest.raises(ValueError, match="tensor odd has type 19"):
        GgufFile(path)


@given(share=st.floats(0, 0.999))
def test_a_file_that_is_cut_short_is_refused(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.gguf"
    write_gguf(path, tiny_fields(), tiny_tensors())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"not whole|not a GGUF"):
        GgufFile(path)


def with_tensors(source: Path, kinds: dict[str, int]) -> dict[str, Array]:
    """Give some of the model's matrices another format; return the numbers of all."""
    tensors = []
    for tensor in tiny_tensors():
        kind = kinds.get(tensor.name)
        if kind is None:
            tensors.append(tensor)
            continue
        wide = np.random.default_rng(7).normal(size=tensor.shape).astype(np.float32)
        if kind == BF16:
            data = (wide.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(-1)
        else:
            data = wide.astype({F16: np.float16, F32: np.float32}[kind]).view(np.uint8).reshape(-1)
        tensors.append(Tensor(tensor.name, tensor.shape, kind, data))
    write_gguf(source / "model.gguf", tiny_fields(), tensors)
    return {tensor.name: tensor.weights() for tensor in tensors}


@pytest.mark.parametrize(("kind", "dtype"), [(F16, "F16"), (F32, "F32"), (BF16, "BF16")])
def test_matrices_that_are_not_quantised_keep_their_type(
    source: Path, target: Path, kind: int, dtype: str
) -> None:
    originals = with_tensors(source, {"blk.0.ffn_up.weight": kind, "blk.0.attn_q.weight": kind})
    to_mlx(source, target)
    with (target / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        place = header["model.layers.0.mlp.up_proj.weight"]
        file.seek(8 + length + place["data_offsets"][0])
        begin, end = place["data_offsets"]
        raw = file.read(end - begin)
    assert place["dtype"] == dtype
    assert header["model.norm.weight"]["dtype"] == dtype
    read = Tensor("", tuple(place["shape"]), kind, np.frombuffer(raw, np.uint8)).weights()
    np.testing.assert_array_equal(read, originals["blk.0.ffn_up.weight"])


def wide_super(kind: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Tensors of a model wide enough for blocks of 256 weights."""
    shapes = {
        "token_embd.weight": (len(TOKENS), 256),
        "blk.0.attn_q.weight": (256, 256),
        "blk.0.attn_k.weight": (128, 256),
        "blk.0.attn_v.weight": (128, 256),
        "blk.0.attn_output.weight": (256, 256),
        "blk.0.ffn_gate.weight": (512, 256),
        "blk.0.ffn_up.weight": (512, 256),
        "blk.0.ffn_down.weight": (256, 512),
    }
    matrices = {
        name: Tensor(name, shape, kind, blocks(kind, shape, seed).data)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    norms = [
        Tensor(name, (256,), F32, np.ones(256, np.float32).view(np.uint8))
        for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    ]
    return [*matrices.values(), *norms], matrices


def super_fields() -> list[bytes]:
    numbers = {"llama.embedding_length": 256, "llama.feed_forward_length": 512}
    return tiny_fields(**{name: uint32_field(name, value) for name, value in numbers.items()})


def unpacked_stream(weights: dict[str, Array], module: str, bits: int) -> Array:
    """Decode MLX's affine layout by its definition: a stream of codes, low bits first."""
    words = weights[f"{module}.weight"]
    rows = words.shape[0]
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    digits = stream.reshape(rows, -1, bits).astype(np.float32)
    codes = (digits @ (2.0 ** np.arange(bits, dtype=np.float32))).reshape(rows, -1, 32)
    scale, bias = (
        weights[f"{module}.{x}"][..., None].astype(np.float32) for x in ("scales", "biases")
    )
    found: Array = (codes * scale + bias).reshape(rows, -1)
    return found


@pytest.mark.parametrize(
    ("kind", "bits", "off"),
    [(Q5_0, 5, 0.0), (Q5_1, 5, 0.0), (Q4_K, 4, 0.002), (Q5_K, 5, 0.002), (Q6_K, 8, 0.01)],
)
def test_other_formats_are_carried_over(
    source: Path, target: Path, kind: int, bits: int, off: float
) -> None:
    tensors, matrices = wide_super(kind)
    write_gguf(source / "model.gguf", super_fields(), tensors)
    to_mlx(source, target)
    config = json.loads((target / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": bits}
    found = unpacked_stream(
        load_file(target / "model.safetensors"), "model.layers.0.mlp.down_proj", bits
    )
    wanted = matrices["blk.0.ffn_down.weight"].weights()
    assert np.linalg.norm(found - wanted) <= off * np.linalg.norm(wanted)

    exact = target / "exact"
    exact.mkdir()
    to_mlx(source, exact, exact=True)
    weights = load_file(exact / "model.safetensors")
    module = "model.layers.0.mlp.down_proj"
    plain = kind == Q6_K
    found = weights[f"{module}.weight"] if plain else unpacked_stream(weights, module, bits)
    np.testing.assert_array_equal(found, wanted)


def test_rotary_factors_of_llama_3_become_its_configuration(source: Path, target: Path) -> None:
    factors = llama3_factors(WIDTH // HEADS // 2, 100_000.0, 8.0).astype(np.float32)
    assert factors.min() >= 1
    tensors = [
        *tiny_tensors(),
        Tensor("rope_freqs.weight", factors.shape, F32, factors.view(np.uint8)),
    ]
    write_gguf(source / "model.gguf", tiny_fields(), tensors)
    to_mlx(source, target)
    config = json.loads((target / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["rope_scaling"]["factor"] == pytest.approx(8.0)
    odd = factors[::-1].copy()
    tensors[-1] = Tensor("rope_freqs.weight", odd.shape, F32, odd.view(np.uint8))
    write_gguf(source / "model.gguf", tiny_fields(), tensors)
    with pytest.raises(ValueError, match="factors of its own"):
        to_mlx(source, target)
