"""Dense weights for the compiled kernels, which read them in the precision they are stored in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.weight import StoredWeight

_CHUNK = 1 << 14  # weights checked at once; one that needs fp32 is nearly always in the first chunk


@dataclass(frozen=True)
class DenseWeight(StoredWeight):
    """values: (rows, columns) or (experts, rows, columns), in fp32, bf16 or fp16."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return tuple(self.values.shape)

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        return self.values.float()


def narrowed(values: Tensor) -> Tensor:
    """The same numbers in bf16 or fp16 if that is exact, bit for bit: many fp32 files hold such weights."""
    if values.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            if all(_is_exact(chunk, dtype) for chunk in torch.split(values.flatten(), _CHUNK)):
                return values.to(dtype)
    return values


def _is_exact(values: Tensor, dtype: torch.dtype) -> bool:
    return values.to(dtype).float().view(torch.int32).equal(values.view(torch.int32))
