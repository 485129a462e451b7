"""Weights of 4 bits that are indices: w = scale * codes[q], with a scale for each 32 columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.affine import unpacked
from gptcli.quant.packed import PackedWeight


@dataclass(frozen=True)
class CodebookWeight(PackedWeight):
    """A matrix of (rows, columns), or a stack of them, one per expert.

    packed: (rows, columns / 2) uint8, the first column in the lower half; scales: (rows, columns / 32) in fp16; codes:
    16 integers of 8 bits.
    """

    packed: Tensor
    scales: Tensor
    codes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return *self.packed.shape[:-1], self.packed.shape[-1] * 2

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        codes = torch.tensor(self.codes, dtype=torch.float32, device=self.packed.device)
        values = codes[unpacked(self.packed, 4).int()].view(*self.scales.shape, -1)
        return (self.scales.float()[..., None] * values).view(self.shape)
