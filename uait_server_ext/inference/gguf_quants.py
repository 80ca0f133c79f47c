"""Block formats of GGUF (ggml's), taken apart: codes, scales and weights.

A block holds 32 weights (the older formats) or 256 (the K formats). Where every 32 weights share
one scale and one bias, weight = code * scale + bias, a block is already what MLX calls affine with
groups of 32, and its codes can be carried over as they are:

======================= ====== ==================================================================
Q4_0, Q4_1              4 bits lossless
Q5_0, Q5_1              5 bits lossless
Q8_0                    8 bits lossless
Q4_K, Q5_K              codes exact; a scale is 16 bits times 6, rounded to 16 unless kept wide
Q2_K, Q3_K, Q6_K        groups of 16 weights: unpacked, and quantised anew where that is wanted
F32, F16, BF16          no blocks
======================= ====== ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

F32, F16, BF16 = 0, 1, 30
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 2, 3, 6, 7, 8
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = 10, 11, 12, 13, 14
GROUP = 32
SUPER = 256  # weights in a block of the K formats

NAMES = {
    F32: "F32", F16: "F16", BF16: "BF16", Q4_0: "Q4_0", Q4_1: "Q4_1", Q5_0: "Q5_0", Q5_1: "Q5_1",
    Q8_0: "Q8_0", Q2_K: "Q2_K", Q3_K: "Q3_K", Q4_K: "Q4_K", Q5_K: "Q5_K", Q6_K: "Q6_K",
}  # fmt: skip
FLOAT_BYTES = {F32: 4, F16: 2, BF16: 2}


class Layout(NamedTuple):
    """Weights and bytes of one block."""

    weights: int
    bytes: int


LAYOUTS = {
    Q4_0: Layout(32, 18),
    Q4_1: Layout(32, 20),
    Q5_0: Layout(32, 22),
    Q5_1: Layout(32, 24),
    Q8_0: Layout(32, 34),
    Q2_K: Layout(256, 84),
    Q3_K: Layout(256, 110),
    Q4_K: Layout(256, 144),
    Q5_K: Layout(256, 176),
    Q6_K: Layout(256, 210),
}
CODE_BITS = {Q4_0: 4, Q4_1: 4, Q5_0: 5, Q5_1: 5, Q8_0: 8, Q4_K: 4, Q5_K: 5}


class Affine(NamedTuple):
    """Weights as code * scale + bias: codes (..., 32) uint8, the others (...) float32."""

    codes: Array
    scales: Array
    biases: Array


def affine(kind: int, blocks: Array) -> Affine:
    """Take blocks (..., bytes of one) of a format in ``CODE_BITS`` apart, exactly.

    The leading dimensions become (..., groups): a K block is eight groups.
    """
    return _AFFINE[kind](blocks)


def weights(kind: int, blocks: Array) -> Array:
    """Return the weights of blocks (n, bytes of one) as float32 (n, weights of one)."""
    if kind in _AFFINE:
        codes, scales, biases = affine(kind, blocks)
        wide = codes.astype(np.float32)
        wide *= scales[..., None]
        wide += biases[..., None]
        return wide.reshape(len(blocks), -1)
    return _UNPACK[kind](blocks)


def quantise(wide: Array) -> Affine:
    """Quantise weights (rows, columns) to 8 bits in groups of 32.

    Scale and bias are rounded to 16 bits first and the codes fitted to them, so that an error is
    at most about half a step (1/510 of the group's range).
    """
    groups = wide.reshape(wide.shape[0], -1, GROUP)
    least, most = groups.min(axis=-1), groups.max(axis=-1)
    biases = least.astype(np.float16).astype(np.float32)
    # a scale rounded up covers the range; the smallest normal one keeps its precision
    scales = np.maximum((most - biases) / 255, np.float32(2**-14))
    rounded = scales.astype(np.float16)
    rounded = np.where(rounded < scales, np.nextafter(rounded, np.float16(np.inf)), rounded)
    scales = rounded.astype(np.float32)
    codes = np.rint((groups - biases[..., None]) / scales[..., None]).clip(0, 255)
    return Affine(codes.astype(np.uint8), scales, biases)


def _q4_0(blocks: Array) -> Affine:
    scales = _half(blocks, 0)
    return Affine(_nibbles(blocks[..., 2:]), scales, scales * np.float32(-8))


def _q4_1(blocks: Array) -> Affine:
    return Affine(_nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Array) -> Affine:
    scales = _half(blocks, 0)
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return Affine(codes, scales, scales * np.float32(-16))


def _q5_1(blocks: Array) -> Affine:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Affine(codes, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Array) -> Affine:
    # signed codes become unsigned; the shift goes into the bias, exactly representable
    scales = _half(blocks, 0)
    return Affine(blocks[..., 2:] ^ np.uint8(0x80), scales, scales * np.float32(-128))


def _q4_k(blocks: Array) -> Affine:
    scales, biases = _six_bit_pairs(blocks)
    # 32 bytes hold two groups: low halves the first, high halves the second
    pairs = blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 1, 32)
    codes = np.concatenate([pairs & 15, pairs >> 4], axis=-2)
    return Affine(codes.reshape(*scales.shape, GROUP), scales, biases)


def _q5_k(blocks: Array) -> Affine:
    scales, biases = _six_bit_pairs(blocks)
    pairs = blocks[..., 48:].reshape(*blocks.shape[:-1], 4, 1, 32)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=-2).reshape(*scales.shape, GROUP)
    # bit g of byte i is the fifth bit of weight i of group g
    high = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = low | (high.reshape(low.shape) << 4)
    return Affine(codes, scales, biases)


def _six_bit_pairs(blocks: Array) -> tuple[Array, Array]:
    """Scales and biases of the eight groups of a Q4_K or Q5_K block: 6-bit numbers in 12 bytes."""
    first, second, third = (blocks[..., 4 + at : 8 + at] for at in (0, 4, 8))
    numbers = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    scales = _half(blocks, 0)[..., None] * numbers.astype(np.float32)
    biases = -_half(blocks, 2)[..., None] * minima.astype(np.float32)
    return scales, biases


def _q2_k(blocks: Array) -> Array:
    packed = blocks[:, :16]
    scales = _half(blocks, 80)[:, None] * (packed & 15).astype(np.float32)
    minima = _half(blocks, 82)[:, None] * (packed >> 4).astype(np.float32)
    codes = _quarters(blocks[:, 16:80]).reshape(-1, 16, 16)
    return _flat(codes.astype(np.float32) * scales[..., None] - minima[..., None])


def _q3_k(blocks: Array) -> Array:
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([(packed[:, 8:] >> (2 * at)) & 3 for at in range(4)], axis=1)
    numbers = (low | (high << 4)).astype(np.float32) - 32
    scales = _half(blocks, 108)[:, None] * numbers
    # a bit that is not set takes four away
    bits = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    codes = _quarters(blocks[:, 32:96]).reshape(-1, SUPER).astype(np.float32)
    codes -= 4 * (1 - bits.reshape(-1, SUPER).astype(np.float32))
    return _flat(codes.reshape(-1, 16, 16) * scales[..., None])


def _q6_k(blocks: Array) -> Array:
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    four = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    two = np.stack([(high >> (2 * at)) & 3 for at in range(4)], axis=2)
    codes = (four | (two << 4)).astype(np.float32) - 32
    numbers = blocks[:, 192:208].view(np.int8).astype(np.float32)
    scales = _half(blocks, 208)[:, None] * numbers
    return _flat(codes.reshape(-1, 16, 16) * scales[..., None])


def _half(blocks: Array, at: int) -> Array:
    """The 16-bit number at a byte of each block, as float32."""
    pair = np.ascontiguousarray(blocks[..., at : at + 2])
    return pair.view("<f2")[..., 0].astype(np.float32)


def _nibbles(data: Array) -> Array:
    """Sixteen bytes: low halves are weights 0..15 of the group, high ones 16..31."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _fifth_bits(data: Array) -> Array:
    """Four bytes of 32 bits, lowest first, each as the fifth bit of a code."""
    return np.unpackbits(data, axis=-1, bitorder="little") << np.uint8(4)


def _quarters(data: Array) -> Array:
    """Sixty-four bytes of 2-bit codes: of each 32 bytes the lowest bits first, then the next."""
    halves = data.reshape(-1, 2, 1, 32)
    return (halves >> np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]) & 3


def _flat(blocks: Array) -> Array:
    flat: Array = blocks.reshape(len(blocks), SUPER).astype(np.float32)
    return flat


_AFFINE: dict[int, Callable[[Array], Affine]] = {
    Q4_0: _q4_0, Q4_1: _q4_1, Q5_0: _q5_0, Q5_1: _q5_1, Q8_0: _q8_0, Q4_K: _q4_k, Q5_K: _q5_k,
}  # fmt: skip
_UNPACK: dict[int, Callable[[Array], Array]] = {Q2_K: _q2_k, Q3_K: _q3_k, Q6_K: _q6_k}
