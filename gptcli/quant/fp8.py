"""FP8 weights (E4M3) with a scale for the whole matrix, for each row, or for each block of it."""

from __future__ import annotations

from torch import Tensor


def dequantize_fp8(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """weight * scale in fp32, for a weight (rows, columns).

    scale: one number; one a row, (rows,) or (rows, 1); or one a block, the last ones of which may be cut off.
    """
    rows, columns = weight.shape
    scale = scale.float()
    if scale.numel() == 1:
        return weight.float() * scale.flatten()
    if scale.shape in ((rows,), (rows, 1)):
        return weight.float() * scale.view(rows, 1)
    spread = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight.float() * spread
