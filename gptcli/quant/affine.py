"""Affine quantization: groups of columns share a scale and a bias, w = scale * q + bias.

The layout is MLX's: each row is a stream of bits in little-endian words, the first column in the lowest bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.quant.packed import PackedWeight

_CHUNK = 1 << 18  # weights quantized at once


@dataclass(frozen=True)
class AffineWeight(PackedWeight):
    """A matrix of (rows, columns) in `bits` bits, or a stack of them, one per expert.

    packed: (rows, columns * bits / 8) uint8; scales and biases: (rows, groups).
    """

    packed: Tensor
    scales: Tensor
    biases: Tensor
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return *self.packed.shape[:-1], self.packed.shape[-1] * 8 // self.bits

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        q = unpacked(self.packed, self.bits)
        q = q.view(*self.scales.shape, -1).float()
        return torch.addcmul(self.biases.float()[..., None], q, self.scales.float()[..., None]).view(self.shape)


def quantize_affine(weight: Tensor, bits: int, group_size: int = 32) -> AffineWeight:
    """The nearest values to a weight (..., rows, columns) in 4 or 8 bits. group_size: columns that share a scale.

    In 4 bits, a group's least value becomes the first level and its greatest the last. In 8 bits, 128 stands for 0, and
    the greatest magnitude is 127 steps away: nearly as exact, and the kernels need no biases, which the scales imply.
    """
    *outer, columns = weight.shape
    flat = weight.reshape(-1, columns)
    step = max(1, _CHUNK // columns)
    chunks = zip(*(_quantized(chunk, bits, group_size) for chunk in torch.split(flat, step)), strict=True)
    packed, scales, biases = (torch.cat(each).view(*outer, -1) for each in chunks)
    return AffineWeight(packed, scales, biases, bits)


def _quantized(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // group_size, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    scales, biases = _spread(low, high, bits)
    if bits == 8:
        centred = _centred(torch.maximum(-low, high))
        fits = centred[1].isfinite()
        scales, biases = (torch.where(fits, *both) for both in zip(centred, (scales, biases), strict=True))
    # A constant group has scale 0 and q 0, so any divisor will do.
    divisor = torch.where(scales == 0, 1, scales).float()
    levels = (groups - biases.float()[..., None]) / divisor[..., None]
    q = levels.round_().clamp_(0, 2**bits - 1).to(torch.uint8).view(rows, columns)
    return pack_nibbles(q) if bits == 4 else q, scales, biases


def _spread(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scales and biases in fp16 that map the least value to the first level, the greatest to the last."""
    biases = low.half()
    return ((high - biases.float()) / (2**bits - 1)).half(), biases


def _centred(most: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and biases in fp16 for 8 bits, where 128 stands for 0. The biases, -128 * scale, are exact or infinite.

    most: the greatest magnitudes.
    """
    scales = (most / 127).half()
    # A subnormal scale, rounded down, may be too small for 127 steps to reach the greatest value.
    short = scales.float() * 127.5 < most
    scales = (scales.view(torch.int16) + short).view(torch.float16)
    return scales, scales * -128


def pack_nibbles(q: Tensor) -> Tensor:
    """(..., columns) of 4 bits, one per byte, to (..., columns / 2), two per byte."""
    return q[..., ::2] | (q[..., 1::2] << 4)


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """(..., bytes) to (..., columns), one per byte; columns of 3, 5 and 6 bits may cross bytes."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    last = packed.shape[-1] - 1
    first_bits = torch.arange(packed.shape[-1] * 8 // bits, device=packed.device) * bits
    low, high = packed[..., first_bits // 8].short(), packed[..., (first_bits // 8 + 1).clamp(max=last)].short()
    q: Tensor = ((low | high << 8) >> (first_bits % 8)) & (2**bits - 1)
    return q
