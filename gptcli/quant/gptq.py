"""GPTQ's layout: w = scale * (q - zero), q in columns of words. Source: torch layers of AutoGPTQ and GPTQModel."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.errors import BrokenCheckpoint
from gptcli.quant.affine import AffineWeight, unpacked


def gptq_weight(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    group_of: Tensor | None,
    *,
    bits: int,
    group_size: int,
    zero_offset: int,
) -> AffineWeight | Tensor:
    """The weight (out, in): packed, or in fp32 if columns were quantized out of order ("desc_act").

    qweight: (in * bits / 32, out) int32, each column a bit stream. qzeros: (groups, out * bits / 32) int32, each row a
    bit stream. scales: (groups, out). group_of: (in,), the group of each input. zero_offset: added to stored zeros.
    Raises BrokenCheckpoint if group_of names a group that does not exist.
    """
    packed = qweight.t().contiguous().view(torch.uint8)  # (out, in * bits / 8)
    zeros = (unpacked(qzeros.view(torch.uint8), bits) + zero_offset) & (2**bits - 1)  # (groups, out)
    factors = scales.float().t().contiguous()  # (out, groups)
    biases = -factors * zeros.t()
    columns = packed.shape[1] * 8 // bits
    in_order = torch.arange(columns) // min(group_size, columns)  # config.json may say any size
    group_of = in_order if group_of is None else group_of.long()
    if not 0 <= group_of.min() <= group_of.max() < factors.shape[1]:
        raise BrokenCheckpoint("g_idx of a GPTQ weight names a group that is not there")
    if columns % group_size == 0 and group_of.equal(in_order):
        return AffineWeight(packed, factors, biases, bits)
    q = unpacked(packed, bits).float()
    return torch.addcmul(biases[:, group_of], q, factors[:, group_of])
