"""Reads a checkpoint's tensors by name into memory of our own, one at a time."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.files import open_regular
from gptcli.quant.affine import AffineWeight
from gptcli.quant.fp8 import dequantize_fp8

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "U32": torch.uint8, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


class TensorSource:
    """Lazy access to the tensors of a folder; a context manager that owns the open files.

    Bytes are copied, not mapped: a file that is truncated or replaced meanwhile cannot crash the process later.
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
        for file in self._files.values():
            file.close()

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored; 32-bit words come as bytes. Raises BrokenCheckpoint where the file has shrunk."""
        info = self._folder.tensors[name]
        if info.dtype not in _DTYPES:
            raise UnsupportedArchitecture(f"{name}: weights of dtype {info.dtype} are not supported")
        if info.file not in self._files:
            self._files[info.file] = open_regular(info.file)
        file = self._files[info.file]
        buffer = torch.empty(info.size, dtype=torch.uint8)
        file.seek(info.offset)
        if file.readinto(buffer.numpy().data) != info.size:
            raise BrokenCheckpoint(f"cannot read: {info.file}: it ends within {name!r}")
        self.bytes_read += info.size
        shape = (*info.shape[:-1], -1) if info.dtype == "U32" else info.shape
        return buffer.view(_DTYPES[info.dtype]).view(shape)

    def weight(self, name: str) -> Tensor | AffineWeight:
        """A tensor as it is stored, an FP8 matrix in fp32, or the packed matrix that goes by its name."""
        if scale := self._folder.fp8_scale(name):
            return dequantize_fp8(self.read(name), self.read(scale), self._folder.fp8_block)
        module = name.removesuffix(".weight")
        spec = self._folder.affine.get(module)
        if spec is None or module == name:
            return self.read(name)
        scales, biases = self.read(f"{module}.scales"), self.read(f"{module}.biases")
        return AffineWeight(self.read(name), scales, biases, spec.bits)


def non_finite_tensors(folder: ModelFolder) -> list[str]:
    """Names of the tensors that hold NaN or infinity. Reads all of them, one at a time."""
    with TensorSource(folder) as source:
        tensors = ((name, source.read(name)) for name in folder.tensors)
        return [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.float().isfinite().all()]
