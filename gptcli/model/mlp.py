"""Feed-forward networks: plain, gated (Shazeer, 2020), and mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import Activation, DenseAndMoeConfig, MlpConfig, MoeConfig
from gptcli.model.linear import Linear
from gptcli.model.norm import Norm

_FEW = 32  # tokens at most for which a GPU's choice of experts is not read back
_COPYING = 3  # cost of a copied weight: read, written, read again


def _clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The activation of gpt-oss: both bounded at 7, a steeper sigmoid, and 1 added to up."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """An activation that works element by element."""
    return _ACTIVATIONS[name]


class Xielu(nn.Module):
    """xIELU (Huang and Schlag, 2024): a parabola above 0, an exponential below, with a learned curvature for each."""

    CONSTANTS = ("beta", "eps")  # parameters that training leaves

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(()))  # the slope at 0
        self.eps = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, in fp32."""
        wide, beta = x.float(), self.beta.float()
        above = F.softplus(self.alpha_p.float()) * wide * wide
        below = (beta + F.softplus(self.alpha_n.float())) * (torch.expm1(torch.minimum(wide, self.eps.float())) - wide)
        return (torch.where(wide > 0, above, below) + beta * wide).to(x.dtype)


def activate(config: MlpConfig, x: Tensor) -> Tensor:
    """Between the matrices: (..., width), or (..., 2 * width) with the gate first, to (..., width)."""
    if not config.gated:
        return _ACTIVATIONS[config.activation](x)
    gate, up = x.chunk(2, -1)
    if config.gate_scale != 1:
        gate = gate * config.gate_scale
    if config.sparsity > 0:
        gate = _cut_off(gate, config.sparsity)
    if config.activation == "clamped_swiglu":
        return _clamped_swiglu(gate, up)
    return _ACTIVATIONS[config.activation](gate) * up


def _cut_off(x: Tensor, share: float) -> Tensor:
    """relu(x - q). q: the quantile `share` of a normal distribution with the mean and deviation of the last axis."""
    deviations = torch.tensor(NormalDist().inv_cdf(share), dtype=x.dtype)
    return F.relu(x - (x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=0) * deviations))


class Mlp(nn.Module):
    """Two matrices and an activation. If gated, gate and up are one matrix, the gate's rows first."""

    def __init__(self, config: MlpConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.up = Linear(hidden_size, config.width * (2 if config.gated else 1), bias=config.bias)
        self.down = Linear(config.width, hidden_size, bias=config.bias)
        self.xielu = Xielu() if config.activation == "xielu" else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., hidden) to the same shape."""
        up = self.up(x)
        out: Tensor = self.down(activate(self.config, up) if self.xielu is None else self.xielu(up))
        return out if self.config.out_scale == 1 else out * self.config.out_scale


def route(config: MoeConfig, logits: Tensor, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights and indices of each token's experts, both (tokens, top_k). logits: (tokens, experts) in fp32."""
    if config.router == "sparsemixer":
        return _sparsemixer(logits, config.jitter)
    scores = logits.sigmoid() if config.router == "sigmoid" else logits.softmax(-1)
    ranked = scores if correction is None else scores + correction
    if config.groups > 1:
        grouped = ranked.view(len(ranked), config.groups, -1)
        best = grouped.topk(config.group_best).values.sum(-1).topk(config.top_groups).indices  # (tokens, top_groups)
        out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        ranked = grouped.masked_fill(out[..., None], float("-inf")).flatten(1)
    _, chosen = ranked.topk(config.top_k)
    weights = scores.gather(1, chosen)
    if config.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True).clamp(min=config.least_sum) + config.added_to_sum)
    return weights * config.scale, chosen


def _sparsemixer(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """`route` for two experts: each weight is a softmax over the experts near it, without those chosen before."""
    left, weights, chosen = logits, [], []
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(1, index))
        chosen.append(index)
        left = left.scatter(1, index, float("-inf"))
    return torch.cat(weights, -1), torch.cat(chosen, -1)


class Moe(nn.Module):
    """A router and experts; each token runs through the experts it chose."""

    def __init__(self, config: MoeConfig, hidden_size: int) -> None:
        super().__init__()
        self.config, expert = config, config.expert
        self.router = Linear(hidden_size, config.experts, bias=config.router_bias)
        latent, bias = config.latent or hidden_size, config.latent_bias
        self.latent_in = Linear(hidden_size, latent, bias=bias) if config.latent else None
        self.latent_out = Linear(latent, hidden_size, bias=bias) if config.latent else None
        self.up = Experts(config.experts, latent, expert.width * (2 if expert.gated else 1), bias=expert.bias)
        self.down = Experts(config.experts, expert.width, latent, bias=expert.bias)
        self.correction = nn.Parameter(torch.empty(1, config.experts)) if config.correction else None
        self.expert_scale = nn.Parameter(torch.empty(config.experts)) if config.expert_scale else None
        self.shared = Mlp(config.shared, hidden_size) if config.shared else None
        self.shared_gate = Linear(hidden_size, 1, bias=False) if config.shared and config.shared_gate else None

    def forward(self, x: Tensor, routed: Tensor | None = None) -> Tensor:
        """x: (B, T, hidden) to the same shape. routed: what the router sees, if not x."""
        flat = x.reshape(-1, x.shape[-1])  # (tokens, hidden)
        routed = flat if routed is None else routed.reshape(flat.shape)
        logits = self.router(routed.float() if self.config.wide_router else routed).float()
        weights, chosen = route(self.config, logits, self.correction)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
        run = self._side_by_side if _few_on_a_gpu(flat) else self._one_by_one
        out = run(flat if self.latent_in is None else self.latent_in(flat), weights.to(x.dtype), chosen)
        if self.latent_out is not None:
            out = self.latent_out(out)
        if self.shared is not None:
            shared = self.shared(flat)
            out = out + (shared if self.shared_gate is None else shared * torch.sigmoid(self.shared_gate(flat)))
        return out.view_as(x)

    def _one_by_one(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Runs each chosen expert on its tokens. x: (tokens, hidden); weights and chosen: (tokens, top_k)."""
        out = torch.zeros_like(x)
        for expert in torch.unique(chosen).tolist():
            token, choice = (chosen == expert).nonzero(as_tuple=True)
            out.index_add_(0, token, self._weighted(partial(self._one, expert), x[token], weights[token, choice, None]))
        return out

    def _side_by_side(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The same without reading back which experts were chosen, which would wait for the GPU and change shapes.

        Copies the weights of each token's experts or, if that costs more, runs all experts.
        """
        tokens, top_k = chosen.shape
        if _COPYING * chosen.numel() > self.config.experts:
            all_weights = weights.new_zeros(tokens, self.config.experts).scatter(1, chosen, weights).t()[..., None]
            every = x.expand(self.config.experts, -1, -1)  # (experts, tokens, hidden)
            return self._weighted(partial(self._several, None), every, all_weights).sum(0)
        each = x.repeat_interleave(top_k, 0)[:, None]  # (tokens * top_k, 1, hidden)
        out = self._weighted(partial(self._several, chosen.flatten()), each, weights.view(-1, 1, 1))
        return out.view(tokens, top_k, -1).sum(1)

    def _weighted(self, run: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor) -> Tensor:
        return run(x * weights) if self.config.scales_input else run(x) * weights

    def _one(self, expert: int, x: Tensor) -> Tensor:
        out: Tensor = self.down(expert, activate(self.config.expert, self.up(expert, x)))
        return out

    def _several(self, experts: Tensor | None, x: Tensor) -> Tensor:
        return self.down.several(activate(self.config.expert, self.up.several(x, experts)), experts)


def _few_on_a_gpu(x: Tensor) -> bool:
    return x.is_cuda and len(x) <= _FEW


class DenseAndMoe(nn.Module):
    """An MLP and a mixture side by side; see `DenseAndMoeConfig`."""

    def __init__(self, config: DenseAndMoeConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        names = ("dense_norm", "post_dense_norm", "moe_norm", "post_moe_norm")
        self.norms = nn.ModuleDict({name: Norm(config.norm, hidden_size) for name in names})
        self.dense = Mlp(config.dense, hidden_size)
        self.moe = Moe(config.moe, hidden_size)
        self.router_norm = Norm(replace(config.norm, weight=False), hidden_size)
        self.router_scale = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """x: the residual stream (B, T, hidden), to the same shape."""
        norms = self.norms
        dense = norms["post_dense_norm"](self.dense(norms["dense_norm"](x)))
        seen = self.router_norm(x) * self.router_scale * x.shape[-1] ** -0.5
        out: Tensor = dense + norms["post_moe_norm"](self.moe(norms["moe_norm"](x), seen))
        return out


class Experts(nn.Module):
    """A linear layer for each expert."""

    def __init__(self, experts: int, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(experts, out_features)) if bias else None

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, in_features) to (tokens, out_features), through one expert."""
        return F.linear(x, self.weight[expert], None if self.bias is None else self.bias[expert])

    def several(self, x: Tensor, experts: Tensor | None) -> Tensor:
        """x: (n, tokens, in_features) to (n, tokens, out_features), through experts (n,), or all of them if None."""
        weight: Tensor = self.weight if experts is None else self.weight[experts]
        bias = self.bias if self.bias is None or experts is None else self.bias[experts]
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
