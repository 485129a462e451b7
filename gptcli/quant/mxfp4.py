"""MXFP4 (OCP Microscaling, 2023): 4-bit floats (E2M1), in groups of 32 that share a power of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.affine import unpacked
from gptcli.quant.packed import PackedWeight

_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class Mxfp4Weight(PackedWeight):
    """A matrix of (rows, columns), or a stack of them, one per expert.

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
        codes = unpacked(self.packed, 4).view(*self.exponents.shape, -1)
        exponents = self.exponents.int() - _EXPONENT_BIAS
        return torch.ldexp(_values(codes.device)[codes.int()], exponents[..., None]).view(self.shape)


def _values(device: torch.device) -> Tensor:
    """The values of the 16 codes: a sign, two bits of exponent, one of mantissa."""
    # Computed on the device: a copy from the host would stall it.
    codes = torch.arange(16, device=device)
    exponents, mantissas = codes >> 1 & 3, codes & 1
    values = torch.ldexp(mantissas + 2.0 * (exponents > 0), exponents.clamp(min=1) - 2)
    return torch.where(codes < 8, values, -values)


def mxfp4_weight(blocks: Tensor, scales: Tensor) -> Mxfp4Weight:
    """A weight from blocks (..., rows, groups, 16) and scales (..., rows, groups), as gpt-oss stores them."""
    return Mxfp4Weight(blocks.flatten(-2), scales)
