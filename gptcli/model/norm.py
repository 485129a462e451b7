"""RMS and layer normalization (Zhang and Sennrich, 2019; Ba et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import NormConfig


class Norm(nn.Module):
    """Normalizes over the last axis in fp32, then scales and shifts; weight and bias may have more axes."""

    def __init__(self, config: NormConfig, *shape: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(shape)) if config.weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., *shape) of any floating dtype, to the same shape and dtype."""
        if x.is_cuda and self._can_be_fused(x):
            return self._fused(x)
        config, wide, size = self.config, x.float(), x.shape[-1:]
        if config.kind == "rms":
            normalized = F.rms_norm(wide, size, eps=config.eps)
            if not config.wide_scale:
                normalized = normalized.to(x.dtype)
        else:
            normalized = F.layer_norm(wide, size, eps=config.eps)
        if self.weight is not None:
            normalized = normalized * self.weight
        if self.bias is not None:
            normalized = normalized + self.bias
        return normalized.to(x.dtype)

    def _can_be_fused(self, x: Tensor) -> bool:
        weight, rms = self.weight, self.config.kind == "rms"
        return weight is not None and weight.dim() == 1 and weight.dtype == x.dtype and not (rms and self.config.bias)

    def _fused(self, x: Tensor) -> Tensor:
        """In one kernel, which computes in fp32 and rounds once at the end, not also before scaling."""
        size, eps = x.shape[-1:], self.config.eps
        if self.config.kind == "rms":
            return F.rms_norm(x, size, self.weight, eps)
        return F.layer_norm(x, size, self.weight, self.bias, eps)
