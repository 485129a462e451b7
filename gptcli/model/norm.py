"""RMS normalisation (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; the mean is taken in fp32, the product in x's dtype, as Llama does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., size), any floating dtype; the same shape and dtype come back."""
        normalized = F.rms_norm(x.float(), self.weight.shape, eps=self.eps)
        return normalized.to(x.dtype) * self.weight
