"""Turn a GGUF file into what each backend runs best; architectures ``llama`` and ``gemma3``.

=========== ====================================================================================
MLX         a directory that ``mlx_lm.load`` accepts. Blocks that are affine in groups of 32 are
            carried over code by code (``gguf_quants``), the others quantised anew to 8 bits: at 4
            bits that costs 8 % of a weight, at 6 bits 2 %, at 8 bits 0.5 %
llama.cpp   a GGUF with 16-bit weights. On x86 its 4-bit kernels round activations to 8 bits, which
            a small model does not survive (it no longer knows the capital of France), and they are
            slower at reading a prompt than the 16-bit ones
=========== ====================================================================================

Other architectures are refused by name: their norms, rotary layout and tokenizers differ, and a
conversion that is not tested against the original is not offered.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uait_server_ext.errors import InvalidInput

from .gguf_config import ARCHITECTURES, model_config
from .gguf_file import Array, GgufFile, Tensor, uint32_field, write_gguf
from .gguf_quants import BF16, CODE_BITS, F16, F32, FLOAT_BYTES, GROUP, quantise
from .gguf_tokenizer import check_tokenizer, write_tokenizer

SOURCE_FILE = "model.gguf"
HALF_FILE = "model-f16.gguf"
FILE_TYPE, FILE_TYPE_F16 = "general.file_type", 1
MOST_CONTEXT = 32_768  # of an import: llama.cpp takes the memory of the whole context at once
OVERHEAD_BYTES = 250_000_000
ANEW_BITS = 8

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
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
ROPE_FACTORS = "rope_freqs"  # goes into the configuration
DTYPES = {F32: "float32", F16: "float16", BF16: "bfloat16"}

SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint32": "U32"}

Stored = dict[str, tuple[str, Array]]  # by name: safetensors' dtype, and the numbers


def inspect_gguf(path: Path) -> dict[str, Any]:
    """Return what a catalogue entry says of a GGUF file; reads its head only.

    Raises:
        InvalidInput: it is no GGUF file, or none that can be converted; says why.
    """
    from .model_folder import chat_capabilities

    try:
        gguf = GgufFile(path)
        check(gguf)
    except ValueError as error:
        raise InvalidInput(f"{path} cannot be imported: {error}.") from error
    fields = gguf.fields
    context = int(fields[f"{fields['general.architecture']}.context_length"])
    return {
        "kind": "chat",
        "format": "gguf",
        "licence": str(fields.get("general.license", "unknown")),
        "context_tokens": min(context, MOST_CONTEXT),
        "memory_bytes": 2 * sum(tensor.count for tensor in gguf.tensors) + OVERHEAD_BYTES,
        "capabilities": chat_capabilities(str(fields.get("tokenizer.chat_template", ""))),
    }


def check(gguf: GgufFile) -> None:
    """Raise ``ValueError`` for an architecture, tensor or tokenizer that is not supported."""
    if gguf.fields.get("split.count", 1) > 1:
        raise ValueError("it is one part of several; merge them with llama.cpp's gguf-split first")
    architecture = gguf.fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"a GGUF of architecture '{architecture}', not {' or '.join(ARCHITECTURES)}"
        )
    tied = all(tensor.name != "output.weight" for tensor in gguf.tensors)
    model_config(gguf, tied=tied)
    for tensor in gguf.tensors:
        _module(tensor.name, architecture)
    check_tokenizer(gguf.fields)


def to_mlx(source: Path, target: Path, *, exact: bool = False) -> None:
    """Write an MLX model directory for ``source/model.gguf``.

    With ``exact`` nothing is rounded: scales are kept in 32 bits, and blocks that are not affine
    become 32-bit weights. Raises ``ValueError`` for an architecture, tensor type or tokenizer that
    is not supported.
    """
    gguf = _open(source)
    architecture = gguf.fields["general.architecture"]
    write_tokenizer(gguf.fields, target)
    norms = F32 if exact else _norm_type(gguf)
    stored: Stored = {}
    widths: dict[str, int] = {}
    for tensor in gguf.tensors:
        module = _module(tensor.name, architecture)
        if module is None:
            continue
        heads = _interleaved_heads(module, gguf.fields)
        if tensor.type in FLOAT_BYTES:
            parts, width = _plain(tensor, norms, architecture), None
        else:
            parts, width = _quantised(tensor, exact=exact)
        if width is not None:
            widths[module] = width
        for name, (dtype, rows) in parts.items():
            moved = rows if heads is None else _halves(rows, heads)
            stored[f"{module}.{name}"] = dtype, moved
    _save(stored, target / "model.safetensors")
    config = model_config(gguf, tied="lm_head.weight" not in stored)
    config["torch_dtype"] = DTYPES[norms]
    if widths:
        config["quantization"] = _quantization(widths)
    (target / "config.json").write_text(json.dumps(config, indent=1), "utf-8")


to_mlx_exact = partial(to_mlx, exact=True)


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
    check(gguf)
    return gguf


def _half(tensor: Tensor) -> Tensor:
    if len(tensor.shape) == 1:  # norms stay as they are
        return tensor
    return Tensor(tensor.name, tensor.shape, F16, tensor.weights().astype(np.float16))


def _norm_type(gguf: GgufFile) -> int:
    """Return the float type of the norms, which is what the model's activations will be.

    It follows the matrices that are not quantised. Gemma's activations go beyond what fits into
    16-bit floats.
    """
    if gguf.fields["general.architecture"] == "gemma3":
        return F32
    kinds = {x.type for x in gguf.tensors if len(x.shape) > 1 and x.type in FLOAT_BYTES}
    return kinds.pop() if len(kinds) == 1 else F32 if kinds else F16


def _plain(tensor: Tensor, norms: int, architecture: str) -> Stored:
    """Return a tensor that is not quantised: matrices as they are, vectors in the norms' type."""
    if len(tensor.shape) > 1:
        raw = tensor.data.view({F32: "<f4", F16: "<f2", BF16: "<u2"}[tensor.type])
        return {"weight": (DTYPES[tensor.type], raw.reshape(tensor.shape))}
    wide = tensor.weights()
    if architecture == "gemma3":  # llama.cpp has 1 added to Gemma's norms, mlx-lm adds it itself
        wide = wide - 1
    return {"weight": _floats(wide, norms)}


def _floats(wide: Array, kind: int) -> tuple[str, Array]:
    if kind == BF16:  # round to nearest, ties to even
        bits = np.ascontiguousarray(wide, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return DTYPES[kind], rounded.astype(np.uint16)
    return DTYPES[kind], wide.astype(np.float16 if kind == F16 else np.float32)


def _quantised(tensor: Tensor, *, exact: bool) -> tuple[Stored, int | None]:
    """Return a quantised tensor in MLX's affine form, and the bits of its codes."""
    bits = CODE_BITS.get(tensor.type)
    if bits is None and exact:
        return {"weight": _floats(tensor.weights(), F32)}, None
    codes, scales, biases = tensor.affine() if bits else quantise(tensor.weights())
    width = bits or ANEW_BITS
    kind = F32 if exact else F16
    parts: Stored = {
        "weight": ("uint32", _words(codes, width)),
        "scales": _floats(scales, kind),
        "biases": _floats(biases, kind),
    }
    return parts, width


def _module(name: str, architecture: str) -> str | None:
    """Return ``model.layers.3.mlp.up_proj`` for ``blk.3.ffn_up.weight``, and so on.

    None for what is no weight. Raises ``ValueError`` for a tensor that the architecture lacks.
    """
    stem = name.removesuffix(".weight")
    if stem == ROPE_FACTORS:
        return None
    try:
        if not stem.startswith("blk."):
            return MODULES[stem]
        _, layer, part = stem.split(".")
        return f"model.layers.{int(layer)}.{(LAYER_MODULES | NORMS[architecture])[part]}"
    except (KeyError, ValueError):
        raise ValueError(f"a GGUF with the tensor {name}, which {architecture} has not") from None


def _interleaved_heads(module: str, fields: dict[str, Any]) -> int | None:
    """Return how many heads' rows llama.cpp has interleaved in a module, if it has."""
    if fields["general.architecture"] != "llama":
        return None
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
    """Pack codes (rows, groups, 32) into 32-bit words, the first in the lowest bits."""
    rows = codes.shape[0]
    if bits == 8:
        packed = codes
    elif bits == 4:
        packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    else:
        stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
        packed = np.packbits(stream.reshape(rows, -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed.reshape(rows, -1)).view(np.uint32)


def _quantization(widths: dict[str, int]) -> dict[str, Any]:
    """Name the usual width once and the modules that differ by path, as mlx-lm reads it."""
    usual = Counter(widths.values()).most_common(1)[0][0]
    others = {
        module: {"group_size": GROUP, "bits": bits}
        for module, bits in widths.items()
        if bits != usual
    }
    return {"group_size": GROUP, "bits": usual, **others}


def _save(stored: Stored, path: Path) -> None:
    """Write a safetensors file: length of the header, header, numbers.

    Ours, because numpy has no bfloat16 and the package's way around that changes with its version.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, rows) in stored.items():
        begin, end = end, end + rows.nbytes
        shape = list(rows.shape)
        header[name] = {"dtype": SHORT[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, rows in stored.values():
            file.write(np.ascontiguousarray(rows).data)
