"""Reads and checks the fields and tensors of a GGUF file. Knows nothing of models.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import re
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.files import open_regular, open_within
from gptcli.gguf.blocks import BLOCKS

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_VALUES = 1 << 22  # in all lists: several times what the largest vocabulary needs
_MOST_NAMES = 1 << 17  # of fields, and of tensors: far more than any model has
_FIRST_READ, _MOST_READ = 8 << 20, 256 << 20  # bytes: most headers are shorter than the first
_TYPES = {block.number: name for name, block in BLOCKS.items()}
_NOT_READ = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 42: "Q2_0"} | {
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"
}  # fmt: skip
_OLDER = (b"lmgg", b"tjgg", b"fmgg", b"algg")
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's `size` bytes at `offset` of a file. `shape` has the columns last; `kind` is a name in BLOCKS."""

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int


class GgufFile:
    """A GGUF file's typed fields, and its tensors by name; the first part of a split file has those of all parts.

    Raises BrokenCheckpoint for damage and UnsupportedArchitecture for what is unknown, made by `broken` and
    `unsupported`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: set[str] = set()
        self.fields, self.tensors = _Header(path, path.resolve()).read()
        if (parts := self.get("split.count", int, 1)) > 1:
            self._read_parts(parts)

    def broken(self, why: str) -> BrokenCheckpoint:
        """An error: this file is damaged."""
        return _broken(self.path, why)

    def unsupported(self, why: str, hint: str | None = None) -> UnsupportedArchitecture:
        """An error: this file needs something that is not implemented."""
        return _unsupported(self.path, why, hint)

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
        value = self.fields.get(name)
        if value is not None and (type(value) is not kind or isinstance(value, float) and not math.isfinite(value)):
            raise self.broken(f"{name} must be of type {kind.__name__}, not {str(value)[:40]!r}")
        return value

    def any(self, name: str) -> Any:
        """A field's value of whatever type, or None if it is absent."""
        self._read.add(name)
        return self.fields.get(name)

    def values(self, name: str, kind: type[T]) -> list[T]:
        """A field that is a list of values of a type."""
        values = self.get(name, list)
        if {*map(type, values)} - {kind}:
            raise self.broken(f"{name} must be a list of type {kind.__name__}")
        return values

    def unread(self, prefix: str) -> list[str]:
        """Fields with this prefix that were never read."""
        return [name for name in self.fields if name.startswith(prefix) and name not in self._read]

    def data(self, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        """A tensor's bytes, copied: (..., bytes of a row). Raises BrokenCheckpoint if the file has become too short."""
        import numpy as np

        with open_regular(tensor.file) as file:
            file.seek(tensor.offset)
            data = file.read(tensor.size)
        if len(data) < tensor.size:
            raise self.broken("it ends too early; truncated or damaged")
        return np.frombuffer(data, np.uint8).reshape(*tensor.shape[:-1], -1)

    def _read_parts(self, count: int) -> None:
        """Adds the tensors of the other parts, which are beside the first."""
        name = _PART.fullmatch(self.path.name)
        if name is None or int(name[3]) != count or count > 99_999:
            raise self.unsupported(f"one of {count} parts, whose name does not end in -00001-of-{count:05}.gguf")
        if int(name[2]) != 1 or self.get("split.no", int, 0) != 0:
            raise self.unsupported(
                "a part that is not the first", f"give {self.path.with_name(f'{name[1]}-00001-of-{name[3]}{name[4]}')}"
            )
        total = self.optional("split.tensors.count", int)
        for number in range(2, count + 1):
            path = self.path.with_name(f"{name[1]}-{number:05}-of-{name[3]}{name[4]}")
            with open_within(path):  # else a part could be a link to any file
                pass
            fields, tensors = _Header(path, path.resolve()).read()
            if fields.get("split.no") != number - 1 or fields.get("split.count") != count:
                raise _broken(path, f"not part {number} of {count}")
            if twice := sorted(self.tensors.keys() & tensors.keys()):
                raise _broken(path, f"tensor {twice[0][:80]!r} is in another part, too")
            self.tensors |= tensors
        if total is not None and total != len(self.tensors):
            raise self.broken(f"its parts have {len(self.tensors)} tensors of {total}")


class _TooShort(Exception):
    """The header goes on after what was read of it."""


class _Header:
    """Reads a header from the start of a file; never more than the file has, whatever sizes the header says."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._data = b""
        self._at = 0
        self._values = 0  # in lists so far
        self._size = 0  # of the file

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        """The fields, and the tensors by name."""
        with open_regular(self._target) as file:
            self._size = file.seek(0, 2)
            length = _FIRST_READ
            while True:
                file.seek(0)
                self._data, self._at, self._values = file.read(length), 0, 0
                try:
                    return self._parsed()
                except (_TooShort, struct.error):
                    if length >= min(self._size, _MOST_READ):
                        raise _broken(self._path, "it ends too early; truncated or damaged") from None
                    length *= 8
                except UnicodeDecodeError:
                    raise _broken(self._path, "a name or text in it is not UTF-8") from None

    def _parsed(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic = self._take(4)
        if magic in _OLDER:
            raise _unsupported(self._path, "a file of before GGUF", "get the model as GGUF, or convert it anew")
        if magic == b"vers":
            raise _broken(self._path, "a pointer of Git LFS, not the file itself", "fetch it: git lfs pull")
        if magic != b"GGUF":
            raise _broken(self._path, "not a GGUF file")
        version = self._number("I")
        if version in (2 << 24, 3 << 24):
            hint = f"convert it with the gguf package: gguf-convert-endian {shlex.quote(str(self._path))} little"
            raise _unsupported(self._path, "it is big-endian", hint)
        if version not in (2, 3):
            raise _unsupported(self._path, f"GGUF version {version}; only 2 and 3 are read", "convert the model anew")
        tensor_count, field_count = self._number("Q"), self._number("Q")
        if max(tensor_count, field_count) > _MOST_NAMES:
            raise _broken(self._path, f"it has {tensor_count} tensors and {field_count} fields")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            name = self._text()
            if name in fields:
                raise _broken(self._path, f"field {name[:80]!r} occurs twice")
            fields[name] = self._value(self._number("I"))
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name, dimensions = self._text(), self._number("I")
            if name in infos or not 1 <= dimensions <= 4:
                raise _broken(self._path, f"tensor {name[:80]!r} occurs twice, or has {dimensions} dimensions")
            shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
            infos[name] = shape[::-1], self._number("I"), self._number("Q")
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise _broken(self._path, f"general.alignment must be a whole number, not {alignment!r}")
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._tensor(name, shape, kind, start + at) for name, (shape, kind, at) in infos.items()}
        self._check_layout(sorted(tensors.values(), key=lambda tensor: tensor.offset), start, alignment)
        return fields, tensors

    def _check_layout(self, tensors: list[GgufTensor], start: int, alignment: int) -> None:
        """Refuses tensors that overlap, and holes between them, as llama.cpp does: a shape or type is wrong then."""
        end, former = start, "the header"
        for tensor in tensors:
            if tensor.offset < end:  # else a small file could become a huge model
                raise _broken(self._path, f"tensors {former!r} and {tensor.name[:80]!r} overlap")
            if tensor.offset != start - (start - end) // alignment * alignment:
                raise _broken(self._path, f"tensor {tensor.name[:80]!r} does not begin where {former!r} ends")
            end, former = tensor.offset + tensor.size, tensor.name[:80]

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        if kind not in _TYPES:
            known = f" ({_NOT_READ[kind]})" if kind in _NOT_READ else ""
            raise _unsupported(
                self._path,
                f"tensor {name[:80]!r} is of type {kind}{known}, which is not read",
                "get the model in another type, such as Q4_K_M or Q8_0",
            )
        block = BLOCKS[_TYPES[kind]]
        size = math.prod(shape) // block.columns * block.size
        if shape[-1] % block.columns or not size or offset + size > self._size:
            raise _broken(
                self._path,
                f"tensor {name[:80]!r} of shape {list(shape)} is not within the file; truncated or damaged",
            )
        return GgufTensor(name, _TYPES[kind], shape, self._target, offset, size)

    def _take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) < size:
            raise _TooShort
        self._at += size
        return data

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(code)
        return value

    def _text(self) -> str:
        return self._take(self._number("Q")).decode()

    def _texts(self, count: int) -> list[str]:
        data, at = self._data, self._at
        length_at = struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > len(data):
                raise _TooShort
            texts.append(data[start:at].decode())
        self._at = at
        return texts

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise _broken(self._path, f"a field is of unknown type {kind}")
        kind, count = self._number("I"), self._number("Q")
        if kind != _STRING and kind not in _NUMBERS:
            raise _broken(self._path, f"a field is a list of type {kind}")
        self._values += count
        if self._values > _MOST_VALUES:
            raise _broken(self._path, f"its fields are lists of {self._values} values and more")
        if kind == _STRING:
            return self._texts(count)
        code = _NUMBERS[kind]
        return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(f"<{code}"))))


def _broken(path: Path, why: str, hint: str | None = None) -> BrokenCheckpoint:
    return BrokenCheckpoint(f"cannot read: {path}: {why}", hint)


def _unsupported(path: Path, why: str, hint: str | None = None) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"cannot read: {path}: {why}", hint)
