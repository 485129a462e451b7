"""What scans over a text share: they run chunk by chunk, each chunk as matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # tokens: a chunk's products grow with its square


def decays(logs: Tensor) -> tuple[Tensor, Tensor]:
    """The share of earlier values that is left at each token, from the logarithms of tokens' decays (B, heads, T).

    Returns the shares of the state before the chunk (B, heads, T), and of each token's addition (B, heads, T, T): entry
    (t, s) is 0 for s after t. The logarithms are summed in fp64, because differences of long sums are small.
    """
    sums = logs.double().cumsum(-1)
    between = sums[..., :, None] - sums[..., None, :]
    ahead = torch.ones(between.shape[-2:], dtype=torch.bool, device=logs.device).triu(1)
    return sums.exp().float(), between.masked_fill(ahead, float("-inf")).exp().float()
