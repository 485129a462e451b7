"""The gated feed-forward network (Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import MlpConfig
from gptcli.model.linear import Linear


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix, gate's rows first."""

    def __init__(self, config: MlpConfig, hidden_size: int) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * config.width, bias=config.bias)
        self.down = Linear(config.width, hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., hidden); the same shape comes back."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]
