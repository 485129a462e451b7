"""What scans over a text have in common: they run in short chunks, each as matrix products, after the one before."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # tokens: the products in a chunk grow with its square


def decays(logs: Tensor) -> tuple[Tensor, Tensor]:
    """How much is left at each token of what came before, from the logarithm of each token's decay (B, heads, T).

    Returns what is left of the state before the chunk (B, heads, T), and of what each token added (B, heads, T, T):
    entry (t, s) is 0 for s after t. The logarithms are summed in fp64, because differences of long sums are small.
    """
    sums = logs.double().cumsum(-1)
    between = sums[..., :, None] - sums[..., None, :]
    ahead = torch.ones(between.shape[-2:], dtype=torch.bool, device=logs.device).triu(1)
    return sums.exp().float(), between.masked_fill(ahead, float("-inf")).exp().float()
