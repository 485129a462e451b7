"""Lowers MLPs and mixtures of experts."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import nn
from torch.nn import functional as F

from gptcli.kernels.bindings import MOST_GROUPS, ROUTERS
from gptcli.kernels.layers import CompiledExperts
from gptcli.model.config import MlpConfig
from gptcli.model.mlp import DenseAndMoe, Experts, Mlp, Moe, Xielu
from gptcli.runtime.lowering.operations import Operations, Unsupported, activation_number, handles
from gptcli.runtime.program import Buffer

_CHOICE_WIDTH = 3  # of kernels.h's Choice, in units of fp32


def lower_mlp(ops: Operations, mlp: nn.Module, x: Buffer, out: Buffer) -> None:
    """out = mlp(x)."""
    match mlp:
        case Moe():
            _mixture(ops, mlp, x, x, out)
        case Mlp():
            _mlp(ops, mlp, x, out)
        case DenseAndMoe():
            _dense_and_mixture(ops, mlp, x, out)
        case _:
            raise Unsupported(type(mlp).__name__)


def _up_width(config: MlpConfig) -> int:
    return config.width * (2 if config.gated else 1)


def _mlp(ops: Operations, mlp: Mlp, x: Buffer, out: Buffer) -> None:
    config = mlp.config
    handles(config, "width", "activation", "gated", "bias", "gate_scale", "out_scale", "sparsity")
    up, activated = Buffer("up", _up_width(config)), Buffer("activated", config.width)
    ops.linear(mlp.up, x, up)
    if mlp.xielu is not None:
        _xielu(ops, mlp.xielu, up, activated)
    else:
        if config.gated:
            ops.scale(up, config.gate_scale, config.width)
        if config.gated and config.sparsity > 0:
            deviations = NormalDist().inv_cdf(config.sparsity)
            ops.add("CUT_OFF", out=up, size=config.width, stride=up.width, factor=deviations)
        ops.activate(activation_number(config.activation), up, activated, gated=config.gated)
    ops.linear(mlp.down, activated, out)
    ops.scale(out, config.out_scale)


def _xielu(ops: Operations, xielu: Xielu, x: Buffer, out: Buffer) -> None:
    above, below = F.softplus(xielu.alpha_p.float()), F.softplus(xielu.alpha_n.float())
    beta, eps = xielu.beta.float().view(1), xielu.eps.float().view(1)
    weight = torch.cat([above, beta + below, beta, eps]).detach()
    ops.add("XIELU", input=x, out=out, weight=weight, size=out.width)


def _mixture(ops: Operations, moe: Moe, x: Buffer, routed: Buffer, out: Buffer) -> None:
    """out = moe(x). routed: what the router sees."""
    config, expert, top_k = moe.config, moe.config.expert, moe.config.top_k
    handles(
        config, "expert", "experts", "top_k", "renormalize", "router", "router_bias", "wide_router", "correction",
        "groups", "top_groups", "group_best", "least_sum", "added_to_sum", "scale", "jitter", "expert_scale",
        "scales_input", "shared", "shared_gate", "latent", "latent_bias",
    )  # fmt: skip
    handles(expert, "width", "activation", "gated", "bias")
    choices = Buffer("choices", top_k * _CHOICE_WIDTH)
    up, activated = Buffer("up", top_k * _up_width(expert)), Buffer("activated", top_k * expert.width)
    seen, mixed = x, out
    if moe.latent_in is not None and config.latent is not None:
        seen, mixed = Buffer("latent_in", config.latent), Buffer("latent_out", config.latent)
        ops.linear(moe.latent_in, x, seen)
    each = Buffer("each", top_k * mixed.width)  # the results of a token's experts
    _choose(ops, moe, routed, choices)
    _experts(ops, moe.up, seen, choices, up, moe, by_token=True)
    if config.scales_input:
        if expert.bias:
            raise Unsupported("a scaled input beside a bias")
        ops.add("SHARE", out=up, choices=choices, rows=top_k, size=_up_width(expert))
    ops.activate(activation_number(expert.activation), up, activated, rows=top_k, gated=expert.gated)
    _experts(ops, moe.down, activated, choices, each, moe, by_token=False)
    ops.add("MIX", input=each, out=mixed, choices=choices, rows=top_k, size=mixed.width)
    if moe.latent_out is not None:
        ops.linear(moe.latent_out, mixed, out)
    if moe.shared is not None:
        shared, gate = Buffer("shared", out.width), Buffer("gate", 1)
        _mlp(ops, moe.shared, x, shared)
        if moe.shared_gate is not None:
            ops.linear(moe.shared_gate, x, gate)
            ops.add("GATE", input=gate, out=shared, size=out.width)
        ops.sum(out, shared)


def _choose(ops: Operations, moe: Moe, x: Buffer, choices: Buffer) -> None:
    config = moe.config
    if config.router not in ROUTERS or max(config.groups, config.group_best) > MOST_GROUPS:
        raise Unsupported("a router")
    if config.router == "sparsemixer" and config.top_k != 2:
        raise Unsupported("sparsemixer for other than two experts")
    routed = Buffer("routed", config.experts)
    ops.linear(moe.router, x, routed)
    ops.add(
        "CHOOSE",
        input=routed,
        out=Buffer("ranks", config.experts),
        choices=choices,
        weight=None if moe.correction is None else moe.correction[0],
        bias=moe.expert_scale,
        rows=config.top_k,
        size=config.experts,
        router=ROUTERS.index(config.router),
        groups=config.groups,
        top_groups=config.top_groups,
        group_best=config.group_best,
        renormalize=config.renormalize,
        least_sum=config.least_sum,
        added_to_sum=config.added_to_sum,
        factor=config.scale,
        jitter=config.jitter,
    )


def _experts(
    ops: Operations, experts: nn.Module, x: Buffer, choices: Buffer, out: Buffer, moe: Moe, *, by_token: bool
) -> None:
    """by_token: whether x has a row for each token, not one for each of its choices, sorted by expert."""
    match experts:
        case CompiledExperts():
            matrices = experts.matrices
        case Experts() if experts.weight.dtype == torch.float32 and experts.weight.is_contiguous():
            matrices = [ops.library.dense(weight) for weight in experts.weight.detach()]
        case _:
            raise Unsupported(type(experts).__name__)
    ops.add(
        "EXPERTS",
        matrices=matrices,
        input=x,
        out=out,
        choices=choices,
        bias=experts.bias,
        rows=moe.config.top_k,
        size=moe.config.experts,
        table=by_token,
    )


def _dense_and_mixture(ops: Operations, both: DenseAndMoe, x: Buffer, out: Buffer) -> None:
    """x: the residual stream, which stays."""
    handles(both.config, "dense", "moe", "norm")
    normalized, seen, mixed = (Buffer(name, x.width) for name in ("normalized", "seen", "mixed"))
    _mlp(ops, both.dense, ops.norm(both.norms["dense_norm"], x, normalized), out)
    ops.norm(both.norms["post_dense_norm"], out, out)
    scale = both.router_scale.float().detach() * x.width**-0.5
    ops.norms(both.router_norm, x, seen, rows=1, size=x.width, weight=scale)
    _mixture(ops, both.moe, ops.norm(both.norms["moe_norm"], x, normalized), seen, mixed)
    ops.sum(out, ops.norm(both.norms["post_moe_norm"], mixed, mixed))
