"""AWQ's "gemm" layout: w = scale * (q - zero) in 4 bits, eight outputs per word. Source: AutoAWQ's gemm layer."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.quant.affine import AffineWeight, pack_nibbles, unpacked

_NIBBLES = [0, 4, 1, 5, 2, 6, 3, 7]  # a word's eight outputs, by the nibbles that hold them


def awq_weight(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> AffineWeight:
    """The weight (out, in), packed.

    qweight: (in, out / 8) int32; qzeros: (groups, out / 8) int32; scales: (groups, out).
    """
    factors = scales.float().t().contiguous()  # (out, groups)
    packed = pack_nibbles(_nibbles(qweight).t().contiguous())
    return AffineWeight(packed, factors, -factors * _nibbles(qzeros).t(), bits=4)


def _nibbles(words: Tensor) -> Tensor:
    """(rows, words) int32 to (rows, 8 * words) uint8, in the outputs' order."""
    stored = unpacked(words.view(torch.uint8), 4)
    return stored.view(len(words), -1, 8)[..., _NIBBLES].flatten(1)
