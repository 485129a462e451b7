"""MXFP4 (OCP Microscaling, 2023): 4-bit floats (E2M1) in groups of 32 that share a power of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.affine import unpacked
from gptcli.quant.packed import PackedWeight

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class Mxfp4Weight(PackedWeight):
    """A matrix of (rows, columns), or one an expert in front of these axes.

    packed: (rows, columns / 2) uint8, the first column in the lower half; exponents: (rows, columns / 32) uint8.
    """

    packed: Tensor
    exponents: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return *self.packed.shape[:-1], self.packed.shape[-1] * 2

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        values = torch.tensor(_E2M1 + tuple(-value for value in _E2M1), device=self.packed.device)
        codes = unpacked(self.packed, 4).view(*self.exponents.shape, -1)
        exponents = self.exponents.int() - _EXPONENT_BIAS
        return torch.ldexp(values[codes.int()], exponents[..., None]).view(self.shape)


def mxfp4_weight(blocks: Tensor, scales: Tensor) -> Mxfp4Weight:
    """The weight of blocks (..., rows, groups, 16) and scales (..., rows, groups) as gpt-oss stores them."""
    return Mxfp4Weight(blocks.flatten(-2), scales)
