"""Writes GGUF files, version 3: fields, then the names of tensors, then their blocks. Knows nothing of models."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.gguf.blocks import BLOCKS

if TYPE_CHECKING:
    import numpy as np

_ALIGNMENT = 32
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MOST = 1 << 32  # numbers below are uint32
# Names of `general.file_type` in llama.cpp, by the commonest type of blocks.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12,
    "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "BF16": 32, "MXFP4": 38,
}  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """A tensor's values as blocks of a type of BLOCKS. data: any shape, in the order of its rows."""

    kind: str
    data: np.ndarray[Any, Any]


def write_gguf(
    path: Path, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], blocks: Iterator[Blocks]
) -> None:
    """Writes a file of these fields and tensors; the blocks come in the order of the shapes. Raises OSError.

    A field is a bool, an int, a float (fp32), a str, or a list of one of these. The header is written last, because the
    types of blocks are known only then.
    """
    fields = {**fields, "general.file_type": 0, "general.quantization_version": 2}
    kinds: dict[str, tuple[str, int]] = {}  # each tensor's type, and the offset of its data
    elements = Counter[str]()
    with path.open("wb") as file:
        start = _aligned(len(_header(fields, shapes, dict.fromkeys(shapes, ("F32", 0)))))
        at = 0
        for (name, shape), tensor in zip(shapes.items(), blocks, strict=True):
            block = BLOCKS[tensor.kind]
            assert tensor.data.nbytes == math.prod(shape) // block.columns * block.size, (name, shape, tensor.kind)
            kinds[name] = tensor.kind, at
            elements[tensor.kind] += math.prod(shape)
            file.seek(start + at)
            file.write(tensor.data.data)
            at = _aligned(at + tensor.data.nbytes)
        file.truncate(start + at)
        fields["general.file_type"] = _FILE_TYPES.get(elements.most_common(1)[0][0], 0)
        file.seek(0)
        file.write(_header(fields, shapes, kinds))


def _header(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, tuple[str, int]]
) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), len(fields))]
    for name, value in fields.items():
        parts += [_text(name), _typed(value)]
    for name, shape in shapes.items():
        kind, offset = kinds[name]
        parts += [_text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        parts.append(struct.pack("<IQ", BLOCKS[kind].number, offset))
    return b"".join(parts)


def _typed(value: Any) -> bytes:
    """A field's value after its type."""
    if not isinstance(value, list):
        kind = _kind(value, in_list=False)
        return struct.pack("<I", kind) + _value(kind, value)
    kind = _kind(value[0], in_list=True) if value else _STRING
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_value(kind, each) for each in value)


def _kind(value: Any, *, in_list: bool) -> int:
    match value:
        case bool():
            return _BOOL
        case int() if in_list and -(_MOST // 2) <= value < _MOST // 2:
            return 5  # int32, as token types are
        case int():
            return 4 if 0 <= value < _MOST else 11
        case float():
            return 6
        case str():
            return _STRING
    raise TypeError(f"no field can hold {value!r}")


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack({4: "<I", 5: "<i", 6: "<f", _BOOL: "<?", 11: "<q"}[kind], value)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
