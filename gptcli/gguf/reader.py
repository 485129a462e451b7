"""Reads and checks the fields and tensors of a GGUF file. Knows nothing of models.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.files import open_regular

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_VALUES = 1 << 24  # in a list: ten times the largest vocabulary


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's `size` bytes at `offset`. `shape` has the columns last; `kind` is a GGMLQuantizationType."""

    name: str
    kind: Any
    shape: tuple[int, ...]
    offset: int
    size: int


class GgufFile:
    """A GGUF file's typed fields, and its tensors by name.

    Raises BrokenCheckpoint for damage and UnsupportedArchitecture for what is unknown, made by `broken` and
    `unsupported`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: set[str] = set()
        with open_regular(path) as file:
            self._size = file.seek(0, 2)
            file.seek(0)
            try:
                self._fields, self.tensors = self._read_header(file)
            except UnicodeDecodeError:
                raise self.broken("a name or text in it is not UTF-8") from None

    def broken(self, why: str) -> BrokenCheckpoint:
        """An error: this file is damaged."""
        return BrokenCheckpoint(f"cannot import: {self.path}: {why}")

    def unsupported(self, why: str, hint: str | None = None) -> UnsupportedArchitecture:
        """An error: this file needs something that is not implemented."""
        return UnsupportedArchitecture(f"cannot import: {self.path}: {why}", hint)

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """A field's value. An absent one gives the default, or an error if there is none."""
        value = self.optional(name, kind)
        if value is None:
            value = default
        if value is None:
            raise self.broken(f"{name} is missing")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """A field's value, or None if it is absent. Raises BrokenCheckpoint for another type."""
        self._read.add(name)
        value = self._fields.get(name)
        if value is not None and (type(value) is not kind or isinstance(value, float) and not math.isfinite(value)):
            raise self.broken(f"{name} must be of type {kind.__name__}, not {str(value)[:40]!r}")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that is a list of strings."""
        return self._list(name, str)

    def numbers(self, name: str) -> list[int]:
        """A field that is a list of whole numbers."""
        return self._list(name, int)

    def unread(self, prefix: str) -> list[str]:
        """Fields with this prefix that were never read."""
        return [name for name in self._fields if name.startswith(prefix) and name not in self._read]

    def data(self, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        """A tensor's bytes, copied: (..., bytes of a row)."""
        import numpy as np

        with open_regular(self.path) as file:
            file.seek(tensor.offset)
            data = np.frombuffer(self._take(file, tensor.size), np.uint8)
        return data.reshape(*tensor.shape[:-1], -1)

    def _list(self, name: str, kind: type[T]) -> list[T]:
        values = self.get(name, list)
        if any(type(value) is not kind for value in values):
            raise self.broken(f"{name} must be a list of type {kind.__name__}")
        return values

    def _read_header(self, file: BufferedReader) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self._take(file, 4) != b"GGUF":
            raise self.broken("not a GGUF file")
        version = self._number(file, "I")
        if version not in (2, 3):
            raise self.unsupported(f"GGUF version {version}; only 2 and 3 are read, little-endian")
        tensor_count, field_count = self._number(file, "Q"), self._number(file, "Q")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            name = self._text(file)
            if name in fields:
                raise self.broken(f"field {name[:80]!r} occurs twice")
            fields[name] = self._value(file, self._number(file, "I"))
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name, dimensions = self._text(file), self._number(file, "I")
            if name in infos or not 1 <= dimensions <= 4:
                raise self.broken(f"tensor {name[:80]!r} occurs twice, or has {dimensions} dimensions")
            shape = struct.unpack(f"<{dimensions}Q", self._take(file, 8 * dimensions))
            infos[name] = shape[::-1], self._number(file, "I"), self._number(file, "Q")
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise self.broken(f"general.alignment must be a whole number, not {alignment!r}")
        start = -(-file.tell() // alignment) * alignment
        tensors = {name: self._tensor(name, shape, kind, start + at) for name, (shape, kind, at) in infos.items()}
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for tensor, following in pairwise(ordered):
            if tensor.offset + tensor.size > following.offset:  # else a small file could become a huge model
                raise self.broken(f"tensors {tensor.name[:80]!r} and {following.name[:80]!r} overlap")
        return fields, tensors

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
        except ValueError:
            raise self.unsupported(f"tensor {name[:80]!r} is of unknown type {kind}") from None
        columns, block_bytes = GGML_QUANT_SIZES[known]
        size = math.prod(shape) // columns * block_bytes
        if shape[-1] % columns or not size or offset + size > self._size:
            raise self.broken(
                f"tensor {name[:80]!r} of shape {list(shape)} is not within the file; truncated or damaged"
            )
        return GgufTensor(name, known, shape, offset, size)

    def _take(self, file: BufferedReader, size: int) -> bytes:
        if size > self._size or len(data := file.read(size)) < size:
            raise self.broken("it ends too early; truncated or damaged")
        return data

    def _number(self, file: BufferedReader, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(file, struct.calcsize(code)))[0]

    def _text(self, file: BufferedReader) -> str:
        return self._take(file, self._number(file, "Q")).decode()

    def _value(self, file: BufferedReader, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(file, _NUMBERS[kind])
        if kind == _STRING:
            return self._text(file)
        if kind != _ARRAY:
            raise self.broken(f"a field is of unknown type {kind}")
        kind, count = self._number(file, "I"), self._number(file, "Q")
        if _MOST_VALUES < count <= self._size:
            raise self.broken(f"a field is a list of {count} values")
        if kind == _STRING:
            return [self._text(file) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.broken(f"a field is a list of type {kind}")
        code = _NUMBERS[kind]
        return list(struct.unpack(f"<{count}{code}", self._take(file, count * struct.calcsize(f"<{code}"))))
