"""Read and write GGUF files (version 3, little-endian); what blocks hold is ``gguf_quants``'.

::

    magic, version, number of tensors, number of fields
    fields:   name, type, value        what the model is, its tokenizer, its chat template
    tensors:  name, shape, type, offset
    data, each tensor at its offset, aligned

Our own reader, because the reference package takes five seconds over the 100,000 strings of a
vocabulary where this takes a tenth of one, and brings an HTTP client along.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from . import gguf_quants
from .gguf_quants import BF16, F16, F32, FLOAT_BYTES, LAYOUTS, NAMES

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
FLOATS: dict[int, np.dtype[Any]] = {F32: np.dtype("<f4"), F16: np.dtype("<f2")}
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Tensor:
    """A weight: its raw bytes as ``data`` and its shape in rows and columns."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: Array

    def blocks(self) -> Array:
        """Return the bytes of a quantised tensor as (rows, blocks in a row, bytes in a block)."""
        return self.data.reshape(self.shape[0], -1, LAYOUTS[self.type].bytes)

    def weights(self) -> Array:
        """Return the weights as float32, exactly."""
        if self.type in FLOATS:
            return self.data.view(FLOATS[self.type]).reshape(self.shape).astype(np.float32)
        if self.type == BF16:
            wide = self.data.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(self.shape)
        wide_blocks = gguf_quants.weights(self.type, self.blocks().reshape(-1, self.block_bytes))
        return wide_blocks.reshape(self.shape)

    def affine(self) -> gguf_quants.Affine:
        """Return codes (rows, groups, 32), scales and biases (rows, groups), exactly."""
        codes, scales, biases = gguf_quants.affine(self.type, self.blocks())
        rows = self.shape[0]
        return gguf_quants.Affine(
            codes.reshape(rows, -1, gguf_quants.GROUP),
            scales.reshape(rows, -1),
            biases.reshape(rows, -1),
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return LAYOUTS[self.type].bytes

    @property
    def count(self) -> int:
        """Weights in it."""
        return math.prod(self.shape)


class GgufFile:
    """A GGUF file, memory-mapped.

    Raises ``ValueError`` for what is not GGUF version 3, is cut short or holds a tensor type that
    is not known here.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            if len(head) < HEADER.size or head[:4] != MAGIC:
                raise ValueError(f"{path.name} is not a GGUF file of version {VERSION}")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _, version, tensors, fields = HEADER.unpack(head)
        if version != VERSION:
            raise ValueError(f"{path.name} is not a GGUF file of version {VERSION}")
        try:
            self._read(tensors, fields)
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError) as error:
            raise ValueError(f"{path.name} is damaged or not whole: {error}") from error

    def _read(self, tensors: int, fields: int) -> None:
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
        end = max((base + at + _bytes(shape, kind) for _, shape, kind, at in headers), default=0)
        if end > len(everything):
            raise struct.error(f"{end - len(everything):,} bytes are missing at its end")
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
        if self._at > len(self._map):
            raise struct.error("a text goes beyond the end of the file")
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
        dimensions = self._scalar(UINT32)
        if dimensions > MOST_DIMENSIONS:
            raise struct.error(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._scalar(10) for _ in range(dimensions))[::-1]
        kind = self._scalar(UINT32)
        if kind not in NAMES:
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


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    count = math.prod(shape)
    if kind in FLOAT_BYTES:
        return count * FLOAT_BYTES[kind]
    return count // LAYOUTS[kind].weights * LAYOUTS[kind].bytes


def _align(file: IO[bytes]) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
