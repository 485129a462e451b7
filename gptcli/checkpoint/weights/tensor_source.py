"""Reads a checkpoint's tensors and weights by name, one at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder, stamp
from gptcli.checkpoint.formats import Affine, Awq, Fp8, Ggml, Gptq, Mxfp4, Stored
from gptcli.checkpoint.recipes import Ranges
from gptcli.errors import BrokenCheckpoint, InputError, UnsupportedArchitecture
from gptcli.files import open_within
from gptcli.gguf.blocks import BLOCKS, decoded
from gptcli.quant.affine import AffineWeight
from gptcli.quant.awq import awq_weight
from gptcli.quant.fp8 import fp8_weight
from gptcli.quant.ggml import GGML_TYPES, ggml_weight
from gptcli.quant.gptq import gptq_weight
from gptcli.quant.mxfp4 import mxfp4_weight
from gptcli.quant.packed import PackedWeight

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint8, "I32": torch.int32, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip

_CHUNK = 16 << 20  # bytes, a multiple of every dtype's size
_PAGE = 4096  # bytes: the least that the system reads


class TensorSource:
    """Lazy access to the tensors of a folder; a context manager that owns the open files.

    Bytes are copied, not mapped, so that a file truncated or replaced later cannot crash the process. A file that was
    replaced or written to since the folder was opened is an InputError, at the latest when the block ends.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._files: dict[Path, BufferedReader] = {}
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for path in self._files if error is None else ():
                self._check_unchanged(path)
        finally:
            for file in self._files.values():
                file.close()

    def _check_unchanged(self, path: Path) -> None:
        now = stamp(os.fstat(self._files[path].fileno()))
        if self._folder.stamps.get(path, now) != now:
            raise InputError(f"cannot read: {path}: another process has changed it meanwhile", "try again")

    def stored(self, name: str) -> Stored:
        """How a weight is stored."""
        return self._folder.weights[name]

    def read(self, name: str) -> Tensor:
        """A tensor as stored; U32 and ggml's blocks as bytes.

        Raises BrokenCheckpoint if the file has become too short, and UnsupportedArchitecture for an unknown dtype.
        """
        info = self._folder.tensors[name]
        as_bytes = info.dtype == "U32" or info.dtype in GGML_TYPES
        shape = (*info.shape[:-1], -1) if as_bytes else info.shape
        data = self._bytes(name, 0, info.size)
        if info.edit is not None:
            edited = info.edit.undone(data.view(torch.uint8).numpy(), (*info.shape, 1)[0])
            data = torch.from_numpy(edited).view(data.dtype)
        return data.view(shape)

    def slice(self, name: str, axis: int, ranges: Ranges) -> Tensor:
        """Ranges of an axis of a dense tensor; other bytes are not read, or not kept. Raises as `read` does.

        axis: counted from the last, which is -1.
        """
        info = self._folder.tensors[name]
        if info.edit is not None:
            return ranges_of(self.read(name), axis, ranges)
        outer, size = math.prod(info.shape[:axis]), info.shape[axis]
        inner = math.prod(info.shape[axis:][1:]) * (info.size // math.prod(info.shape))  # bytes
        if min(stop - start for start, stop in ranges) * inner >= _PAGE:
            pieces = [
                self._bytes(name, (index * size + start) * inner, (stop - start) * inner)
                for index in range(outer)
                for start, stop in ranges
            ]
            values = torch.cat(pieces)
        else:  # whole pages are read anyway
            step = max(1, _CHUNK // (size * inner))
            chunks = []
            for first in range(0, outer, step):
                count = min(step, outer - first)
                rows = self._bytes(name, first * size * inner, count * size * inner).view(count, size, -1)
                chunks.append(torch.cat([rows[:, start:stop] for start, stop in ranges], 1))
            values = torch.cat(chunks)
        kept = sum(stop - start for start, stop in ranges)
        return values.view(*info.shape[:axis], kept, *info.shape[axis:][1:])

    def chunks(self, name: str) -> Iterator[Tensor]:
        """A tensor's values in flat chunks of at most 16 MB as stored, unedited. Raises as `read` does."""
        info = self._folder.tensors[name]
        step = _CHUNK // BLOCKS[info.dtype].size * BLOCKS[info.dtype].size if info.dtype in GGML_TYPES else _CHUNK
        for start in range(0, info.size, step):
            data = self._bytes(name, start, min(step, info.size - start))
            yield torch.from_numpy(decoded(info.dtype, data.numpy())) if info.dtype in GGML_TYPES else data

    def _bytes(self, name: str, start: int, size: int) -> Tensor:
        info = self._folder.tensors[name]
        if info.dtype not in _DTYPES and info.dtype not in GGML_TYPES:
            raise UnsupportedArchitecture(f"{name}: weights of dtype {info.dtype} are not supported")
        if info.file not in self._files:
            self._files[info.file] = open_within(info.file)
            self._check_unchanged(info.file)
        file = self._files[info.file]
        buffer = torch.empty(size, dtype=torch.uint8)
        file.seek(info.offset + start)
        if file.readinto(buffer.numpy().data) != size:
            raise BrokenCheckpoint(f"cannot read: {info.file}: it ends within {name!r}")
        self.bytes_read += size
        return buffer.view(_DTYPES.get(info.dtype, torch.uint8))

    def weight(self, name: str) -> Tensor | PackedWeight:
        """A weight by its name in transformers: dense in its stored precision, or packed. Raises as `read`."""
        stored = self.stored(name)
        tensors = [self.read(tensor) for tensor in stored.tensors]
        match stored:
            case Affine(bits=bits):
                packed, scales, biases = tensors
                return AffineWeight(packed, scales, biases, bits)
            case Fp8(block=block):
                values, scales = tensors
                return fp8_weight(values, scales, block)
            case Mxfp4():
                return mxfp4_weight(*tensors)
            case Awq():
                return awq_weight(*tensors)
            case Ggml(kind=kind):
                return ggml_weight(kind, tensors[0])
            case Gptq(bits=bits, group_size=size, zero_offset=offset):
                qweight, qzeros, scales, *g_idx = tensors
                group_of = g_idx[0] if g_idx else None
                return gptq_weight(qweight, qzeros, scales, group_of, bits=bits, group_size=size, zero_offset=offset)
        return tensors[0]


def ranges_of(value: Tensor, axis: int, ranges: Ranges) -> Tensor:
    """Ranges (start, stop) of an axis of a tensor, one after the other."""
    return torch.cat([value.narrow(axis, start, stop - start) for start, stop in ranges], axis)


def non_finite_tensors(folder: ModelFolder) -> list[str]:
    """Names of the tensors that contain NaN or infinity. Reads all of them, a chunk at a time."""
    floats = [
        name
        for name, info in folder.tensors.items()
        if info.dtype in GGML_TYPES or ((kind := _DTYPES.get(info.dtype)) and kind.is_floating_point)
    ]
    with TensorSource(folder) as source:
        return [name for name in floats if not all(chunk.float().isfinite().all() for chunk in source.chunks(name))]
