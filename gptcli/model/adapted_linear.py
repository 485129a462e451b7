"""Linear layers plus low-rank updates (Hu et al., 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class AdaptedLinear(nn.Module):
    """base(x) + x @ down.T @ up.T: one or several adapters of a layer whose own weight, packed or dense, stays."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        """down: (rank, in_features); up: (out_features, rank), which includes all factors."""
        super().__init__()
        self.base = base
        self.down, self.up = (nn.Parameter(each, requires_grad=False) for each in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) to (..., out_features)."""
        out: Tensor = self.base(x)
        return out + F.linear(F.linear(x, self.down), self.up)
