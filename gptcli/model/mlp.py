"""Feed-forward networks: plain, gated (Shazeer, 2020), and mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import Activation, MlpConfig, MoeConfig
from gptcli.model.linear import Linear


def _clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss's: both bounded at 7, a steeper sigmoid, and 1 added to up."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def activate(config: MlpConfig, x: Tensor) -> Tensor:
    """What comes between the matrices: (..., width), or (..., 2 * width) with the gate first, to (..., width)."""
    if not config.gated:
        return _ACTIVATIONS[config.activation](x)
    gate, up = x.chunk(2, -1)
    if config.activation == "clamped_swiglu":
        return _clamped_swiglu(gate, up)
    return _ACTIVATIONS[config.activation](gate) * up


class Mlp(nn.Module):
    """Two matrices and an activation; where it is gated, gate and up are one matrix, gate's rows first."""

    def __init__(self, config: MlpConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.up = Linear(hidden_size, config.width * (2 if config.gated else 1), bias=config.bias)
        self.down = Linear(config.width, hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., hidden); the same shape comes back."""
        out: Tensor = self.down(activate(self.config, self.up(x)))
        return out


class Moe(nn.Module):
    """A router and experts, of which only those that a token chose are run."""

    def __init__(self, config: MoeConfig, hidden_size: int) -> None:
        super().__init__()
        self.config, expert = config, config.expert
        self.router = Linear(hidden_size, config.experts, bias=config.router_bias)
        self.up = Experts(config.experts, hidden_size, 2 * expert.width, bias=expert.bias)
        self.down = Experts(config.experts, expert.width, hidden_size, bias=expert.bias)
        self.shared = Mlp(config.shared, hidden_size) if config.shared else None
        self.shared_gate = Linear(hidden_size, 1, bias=False) if config.shared else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, hidden); the same shape comes back."""
        flat = x.reshape(-1, x.shape[-1])  # (tokens, hidden)
        shares, chosen = self.router(flat).softmax(-1, dtype=torch.float32).topk(self.config.top_k)
        if self.config.renormalize:
            shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for expert in chosen.unique().tolist():
            token, place = (chosen == expert).nonzero(as_tuple=True)
            activated = activate(self.config.expert, self.up(expert, flat[token]))
            share = shares[token, place, None].to(x.dtype)
            out.index_add_(0, token, self.down(expert, activated) * share)
        if self.shared is not None and self.shared_gate is not None:
            out = out + self.shared(flat) * torch.sigmoid(self.shared_gate(flat))
        return out.view_as(x)


class Experts(nn.Module):
    """One linear layer an expert."""

    def __init__(self, experts: int, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(experts, out_features)) if bias else None

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, in_features) to (tokens, out_features), through one expert."""
        return F.linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])
