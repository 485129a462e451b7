"""Reads and checks the header of a safetensors file, without torch.

Format: a little-endian u64 header length, a JSON object, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import BrokenCheckpoint
from gptcli.files import open_within, parse_json

if TYPE_CHECKING:
    from gptcli.gguf.model_tensor import Edit

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

_HEADER_LIMIT = 32 << 20  # bytes, enough for 200,000 tensors; the reference implementation allows 100 MB
_DIMENSION_LIMIT = 1 << 48
_MOST_DIMENSIONS = 8  # the product of a million would take an hour


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's dtype and shape, and its `size` bytes at `offset` of a file.

    In a GGUF file the dtype may be a type of blocks, and `edit` undoes what the converter did to the bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int
    edit: Edit | None = None


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by name. Raises BrokenCheckpoint for wrong lengths, dtypes, shapes or offsets."""
    with open_within(path) as file:
        file_size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        if start == b"version ":
            raise BrokenCheckpoint(
                f"cannot read: {path}: a Git LFS pointer, not the weights", hint="run `git lfs pull` there"
            )
        if len(start) < 8:
            raise BrokenCheckpoint(f"cannot read: {path}: {file_size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", start)
        if length > min(_HEADER_LIMIT, file_size - 8):
            raise BrokenCheckpoint(
                f"cannot read: {path}: a header of {length} bytes in a file of {file_size}; truncated or damaged"
            )
        header = parse_json(file.read(length), f"{path}: header")
    header.pop("__metadata__", None)
    data_start = 8 + length
    tensors = {name: _tensor(path, name, entry, data_start) for name, entry in header.items()}
    _check_layout(path, tensors, data_start, file_size)
    return tensors


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    def broken(why: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"cannot read: {path}: tensor {name[:80]!r}: {why}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise broken("an entry needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise broken(f"dtype {str(dtype)[:20]!r} is not known")
    if not isinstance(shape, list) or any(type(n) is not int or not 0 <= n < _DIMENSION_LIMIT for n in shape):
        raise broken("its shape is not a list of sizes")
    if len(shape) > _MOST_DIMENSIONS:
        raise broken(f"it has {len(shape)} dimensions, more than {_MOST_DIMENSIONS}")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int for n in offsets):
        raise broken("its data_offsets are not two numbers")
    begin, end = offsets
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    if begin < 0 or end - begin != size:
        raise broken(f"{dtype} of shape {shape} takes {size} bytes, its offsets span {end - begin}")
    return TensorInfo(dtype, tuple(shape), path, data_start + begin, size)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_start: int, file_size: int) -> None:
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            what = "overlaps the one before" if tensor.offset < position else "leaves a hole before it"
            raise BrokenCheckpoint(f"cannot read: {path}: tensor {name[:80]!r} {what}")
        position += tensor.size
    if position > file_size:
        raise BrokenCheckpoint(
            f"cannot read: {path}: the file is {file_size} of {position} bytes", hint="fetch it again"
        )
    if position < file_size:
        raise BrokenCheckpoint(f"cannot read: {path}: {file_size - position} bytes belong to no tensor")
