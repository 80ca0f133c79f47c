"""Read and write GGUF files (version 3, little-endian), as far as models in the catalogue need it.

::

    magic, version, number of tensors, number of fields
    fields:   name, type, value        what the model is, its tokenizer, its chat template
    tensors:  name, shape, type, offset
    data, each tensor at its offset, aligned

Our own reader, because the reference package takes five seconds over the 100,000 strings of a
vocabulary where this takes a tenth of one, and brings an HTTP client along.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
HEADER = struct.Struct("<4sIQQ")
STRING, ARRAY = 8, 9
SCALARS = {
    number: struct.Struct(f"<{code}")
    for number, code in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
                         10: "Q", 11: "q", 12: "d"}.items()
}  # fmt: skip
UINT32 = 4

F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
BLOCK_WEIGHTS = 32  # in one block of the quantised types
BLOCK_BYTES = {Q4_0: 18, Q4_1: 20, Q8_0: 34}
FLOATS: dict[int, np.dtype[Any]] = {F32: np.dtype("<f4"), F16: np.dtype("<f2")}


@dataclass(frozen=True)
class Tensor:
    """A weight: its raw bytes as ``data`` and its shape in rows and columns."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: Array

    def blocks(self) -> Array:
        """Return the bytes of a quantised tensor as (rows, blocks in a row, bytes in a block)."""
        return self.data.reshape(self.shape[0], -1, BLOCK_BYTES[self.type])

    def weights(self) -> Array:
        """Return the weights as float32."""
        if self.type in FLOATS:
            return self.data.view(FLOATS[self.type]).reshape(self.shape).astype(np.float32)
        codes, scales, biases = self.quantised()
        wide = codes.astype(np.float32)
        wide *= scales[..., None].astype(np.float32)
        wide += biases[..., None].astype(np.float32)
        return wide.reshape(self.shape)

    def quantised(self) -> tuple[Array, Array, Array]:
        """Return (codes, scales, biases) with weight = code * scale + bias, losslessly.

        ``codes`` is uint8 of shape (rows, groups, 32); the others are float16 (rows, groups).
        """
        blocks = self.blocks()
        scales = _half(blocks[..., :2])
        if self.type == Q8_0:
            # signed codes become unsigned; the shift goes into the bias, exactly representable
            return blocks[..., 2:] ^ 0x80, scales, scales * np.float16(-128)
        nibbles = blocks[..., -16:]  # low halves are weights 0..15 of the block, high ones 16..31
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
        biases = _half(blocks[..., 2:4]) if self.type == Q4_1 else scales * np.float16(-8)
        return codes, scales, biases


class GgufFile:
    """A GGUF file, memory-mapped.

    Raises ``ValueError`` for what is not GGUF version 3 or holds a tensor type not known here.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, tensors, fields = HEADER.unpack_from(self._map)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError(f"{path.name} is not a GGUF file of version {VERSION}")
        self._at = HEADER.size
        self.fields: dict[str, Any] = {}
        self.field_bytes: dict[str, bytes] = {}
        for _ in range(fields):
            start, name = self._at, self._string()
            self.fields[name] = self._value(self._scalar(UINT32))
            self.field_bytes[name] = self._map[start : self._at]
        headers = [self._tensor_header() for _ in range(tensors)]
        alignment = self.fields.get("general.alignment", ALIGNMENT)
        base = self._at + -self._at % alignment
        everything = np.frombuffer(self._map, np.uint8)
        self.tensors = [
            Tensor(name, shape, kind, everything[base + at : base + at + _bytes(shape, kind)])
            for name, shape, kind, at in headers
        ]

    def _scalar(self, kind: int) -> Any:
        layout = SCALARS[kind]
        (value,) = layout.unpack_from(self._map, self._at)
        self._at += layout.size
        return value

    def _string(self) -> str:
        size = self._scalar(10)
        self._at += size
        return self._map[self._at - size : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(kind)
        inner = self._scalar(UINT32)
        return [self._value(inner) for _ in range(self._scalar(10))]

    def _tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        # the file names the fastest dimension first, arrays name it last
        shape = tuple(self._scalar(10) for _ in range(self._scalar(UINT32)))[::-1]
        kind = self._scalar(UINT32)
        if kind not in FLOATS and kind not in BLOCK_BYTES:
            raise ValueError(f"tensor {name} has type {kind}, which cannot be read here")
        return name, shape, kind, self._scalar(10)


def write_gguf(path: Path, fields: list[bytes], tensors: list[Tensor]) -> None:
    """Write a file with these fields (as ``field_bytes`` gives them) and float tensors."""
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, len(tensors), len(fields)))
        file.writelines(fields)
        offset = 0
        for tensor in tensors:
            dimensions = struct.pack(
                f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1]
            )
            place = struct.pack("<IQ", tensor.type, offset)
            file.write(string_bytes(tensor.name) + dimensions + place)
            offset += tensor.data.nbytes + -tensor.data.nbytes % ALIGNMENT
        for tensor in tensors:
            _align(file)
            file.write(np.ascontiguousarray(tensor.data).data)


def uint32_field(name: str, value: int) -> bytes:
    """Return the bytes of one field that holds a number."""
    return string_bytes(name) + struct.pack("<II", UINT32, value)


def string_bytes(text: str) -> bytes:
    """Return a string as GGUF writes it: length, then UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _half(pairs: Array) -> Array:
    return np.ascontiguousarray(pairs).view(np.float16)[..., 0]


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    count = int(np.prod(shape))
    if kind in FLOATS:
        return count * FLOATS[kind].itemsize
    return count // BLOCK_WEIGHTS * BLOCK_BYTES[kind]


def _align(file: IO[bytes]) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
