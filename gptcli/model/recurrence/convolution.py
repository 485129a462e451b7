"""A causal convolution, channel by channel, which keeps its last inputs from one step to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Convolution(nn.Module):
    """A weighted sum of a channel's newest `kernel` values."""

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, T, channels) after tail (B, kernel - 1, channels); returns the sums, shaped as x, and the new tail."""
        inputs = torch.cat([tail, x], 1)
        sums = F.conv1d(inputs.mT, self.weight, self.bias, groups=len(self.weight)).mT
        return sums, inputs[:, x.shape[1] :].clone()  # a view would keep all inputs alive
