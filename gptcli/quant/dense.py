"""Dense weights that the compiled kernels multiply, in fp32, as they are stored or in less memory, the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.packed import PackedWeight

_PART = 1 << 14  # weights that are looked at at once: one that is no half is nearly always among the first


@dataclass(frozen=True)
class DenseWeight(PackedWeight):
    """values: (rows, columns) in fp32, bf16 or fp16, perhaps one matrix an expert in front of these axes."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return tuple(self.values.shape)

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        return self.values.float()


def narrowed(values: Tensor) -> Tensor:
    """The same numbers in bf16 or fp16 where each is one there, bit for bit: fp32 files are often copies of such."""
    if values.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            if all(_is_exact(part, dtype) for part in torch.split(values.flatten(), _PART)):
                return values.to(dtype)
    return values


def _is_exact(values: Tensor, dtype: torch.dtype) -> bool:
    return values.to(dtype).float().view(torch.int32).equal(values.view(torch.int32))
