"""AWQ's layout ("gemm"): w = scale * (q - zero) in 4 bits, eight outputs a word. Source: AutoAWQ's gemm layer."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.quant.affine import AffineWeight, pack_nibbles, unpacked

_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in its word each of eight outputs lies


def awq_weight(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> AffineWeight:
    """The weight (out, in), packed.

    qweight: (in, out / 8) int32; qzeros: (groups, out / 8) int32; scales: (groups, out).
    """
    factors = scales.float().t().contiguous()  # (out, groups)
    packed = pack_nibbles(_nibbles(qweight).t().contiguous())
    return AffineWeight(packed, factors, -factors * _nibbles(qzeros).t(), bits=4)


def _nibbles(words: Tensor) -> Tensor:
    """(rows, words) int32 to (rows, 8 * words) uint8, in the order of the outputs."""
    stored = unpacked(words.view(torch.uint8), 4)
    return stored.view(len(words), -1, 8)[..., _PLACES].flatten(1)
