"""ggml's K-quants: groups of 16 or 32 columns, whose scales are quantized too, with a factor for 256 columns.

Source: ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.affine import unpacked
from gptcli.quant.packed import PackedWeight


@dataclass(frozen=True)
class SuperBlockWeight(PackedWeight):
    """A matrix of (rows, columns), or a stack of them, one per expert.

    With minima, w = factor * scale * q - minimum_factor * minimum; without, w = factor * scale * (q - 2^(bits - 1)).

    packed: (rows, columns * bits / 8) uint8, each row a stream of bits. scales: (rows, groups) uint8, or int8 without
    minima; minima: (rows, groups) uint8. factors and minimum_factors: (rows, columns / 256) in fp16.
    """

    packed: Tensor
    scales: Tensor
    minima: Tensor | None
    factors: Tensor
    minimum_factors: Tensor | None
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return *self.packed.shape[:-1], self.packed.shape[-1] * 8 // self.bits

    def quants(self) -> Tensor:
        """q, (rows, columns) uint8."""
        return unpacked(self.packed, self.bits).to(torch.uint8)

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        outer = self.factors.shape
        q = self.quants().view(*self.scales.shape, -1).float()
        scales = (self.factors.float()[..., None] * self.scales.view(*outer, -1)).view(*self.scales.shape, 1)
        if self.minima is None or self.minimum_factors is None:
            return torch.mul(scales, q - 2 ** (self.bits - 1)).view(self.shape)
        minima = self.minimum_factors.float()[..., None] * self.minima.view(*outer, -1)
        weight: Tensor = scales * q - minima.view(scales.shape)
        return weight.view(self.shape)


def pack_bits(q: Tensor, bits: int) -> Tensor:
    """(..., columns) of up to 7 bits, one per byte, to (..., columns * bits / 8): a stream of bits, lowest first."""
    shifts = torch.arange(8, device=q.device) * bits
    words = (q.view(*q.shape[:-1], -1, 8).long() << shifts).sum(-1)
    return words[..., None].view(torch.uint8)[..., :bits].flatten(-2)
