"""Weights in bf16 or fp16 as they are stored, multiplied in fp32: half the memory of an fp32 copy, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gptcli.quant.packed import PackedWeight


@dataclass(frozen=True)
class HalfWeight(PackedWeight):
    """values: (rows, columns) in bf16 or fp16, perhaps one matrix an expert in front of these axes."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return tuple(self.values.shape)

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        return self.values.float()
