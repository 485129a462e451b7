"""Lowers layers that keep a state: short convolutions, Mamba 2 and gated DeltaNet."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gptcli.kernels.bindings import ACTIVATIONS
from gptcli.model.config import DeltaNetConfig, Mamba2Config
from gptcli.model.recurrence.convolution import Convolution
from gptcli.model.recurrence.delta_net import LEAST_SQUARE, DeltaNet
from gptcli.model.recurrence.mamba2 import Mamba2
from gptcli.model.recurrence.short_convolution import ShortConvolution
from gptcli.runtime.lowering.operations import Operations, Unsupported, handles
from gptcli.runtime.program import Buffer

_SILU = ACTIVATIONS["silu"]


def lower_state(ops: Operations, layer: nn.Module, x: Buffer, out: Buffer) -> None:
    """out = layer(x)."""
    match layer:
        case ShortConvolution():
            _short_convolution(ops, layer, x, out)
        case Mamba2():
            _mamba2(ops, layer, x, out)
        case DeltaNet():
            _delta_net(ops, layer, x, out)
        case _:
            raise Unsupported(type(layer).__name__)


def _convolve(ops: Operations, convolution: Convolution, x: Buffer, out: Buffer) -> None:
    weight = convolution.weight[:, 0].float().detach()  # (channels, kernel)
    ops.add(
        "CONVOLVE",
        input=x,
        out=out,
        weight=weight.t().contiguous(),
        bias=convolution.bias,
        rows=weight.shape[1],
        size=out.width,
        stride=x.width,
    )


def _short_convolution(ops: Operations, layer: ShortConvolution, x: Buffer, out: Buffer) -> None:
    handles(layer.config, "kernel", "bias")
    parts, sums = Buffer("gated", 3 * x.width), Buffer("sums", x.width)
    before, after, value = parts, parts.at(x.width), parts.at(2 * x.width)
    ops.linear(layer.into, x, parts)
    ops.multiply(value, before, x.width)
    _convolve(ops, layer.convolution, value, sums)
    ops.multiply(sums, after, x.width)
    ops.linear(layer.out, sums, out)


def _mamba2(ops: Operations, layer: Mamba2, x: Buffer, out: Buffer) -> None:
    config = layer.config
    handles(
        config, "heads", "head_dim", "groups", "state_dim", "kernel", "bias", "out_bias", "convolution_bias",
        "step_limits", "norm_eps", "norm_before_gate", "part_scales", "out_scale",
    )  # fmt: skip
    projected, mixed = Buffer("projected", sum(layer.parts)), Buffer("mixed_channels", config.channels)
    scanned, steps = Buffer("scanned", config.width), projected.at(config.width + config.channels)
    ops.linear(layer.into, x, projected)
    begin = 0
    for size, scale in zip(layer.parts, config.part_scales or (1.0,) * 5, strict=True):
        ops.scale(projected.at(begin), scale, size)
        begin += size
    _convolve(ops, layer.convolution, projected.at(config.width), mixed)
    ops.activate(_SILU, mixed, mixed)
    least, most = config.step_limits
    ops.add(
        "RECUR",
        input=mixed,
        keys=mixed.at(config.width),
        queries=mixed.at(config.width + config.shared_width),
        steps=steps,
        out=scanned,
        weight=_rates(layer.decay, layer.step_bias),
        bias=layer.skip,
        heads=config.heads,
        kv_heads=config.groups,
        rows=config.head_dim,
        size=config.state_dim,
        stride=mixed.width,
        out_stride=steps.width,
        least=least,
        most=most,
    )
    _gate_and_norm(ops, layer, config, scanned, projected)
    ops.linear(layer.out, scanned, out)
    ops.scale(out, config.out_scale)


def _gate_and_norm(ops: Operations, layer: Mamba2, config: Mamba2Config, scanned: Buffer, gate: Buffer) -> None:
    if layer.norm_weight is None or config.norm_eps is None or not config.norm_before_gate:
        ops.multiply(scanned, gate, config.width, _SILU)
    if layer.norm_weight is not None and config.norm_eps is not None:
        size = config.width // config.groups
        ops.add(
            "RMS_NORM",
            input=scanned,
            out=scanned,
            weight=layer.norm_weight,
            rows=config.groups,
            size=size,
            stride=scanned.width,
            weight_step=size,
            factor=config.norm_eps,
        )
        if config.norm_before_gate:
            ops.multiply(scanned, gate, config.width, _SILU)


def _rates(decay: Tensor, step_bias: Tensor) -> Tensor:
    """RECUR's weight: the factor that turns a step into the logarithm of the decay, then its bias, (2 * heads)."""
    return torch.cat([-decay.float().exp(), step_bias.float()]).detach()


def _delta_net(ops: Operations, layer: DeltaNet, x: Buffer, out: Buffer) -> None:
    config = layer.config
    handles(config, "heads", "key_heads", "key_dim", "value_dim", "kernel", "norm", "tiled")
    projected, mixed = Buffer("projected", config.channels + config.width), Buffer("mixed_channels", config.channels)
    rates, scanned = Buffer("rates", 2 * config.heads), Buffer("scanned", config.width)
    queries, keys = mixed, mixed.at(config.key_heads * config.key_dim)
    ops.linear(layer.into, x, projected)
    ops.linear(layer.rates, x, rates)
    _convolve(ops, layer.convolution, projected, mixed)
    ops.activate(_SILU, mixed, mixed)
    _of_length(ops, queries, config, config.key_dim**-0.5)
    _of_length(ops, keys, config, 1.0)
    ops.add(
        "RECUR",
        input=keys.at(config.key_heads * config.key_dim),
        keys=keys,
        queries=queries,
        steps=rates,
        out=scanned,
        weight=_rates(layer.decay, layer.step_bias),
        heads=config.heads,
        kv_heads=config.key_heads,
        rows=config.value_dim,
        size=config.key_dim,
        stride=mixed.width,
        out_stride=rates.width,
        most=math.inf,
        corrected=True,
        tiled=config.tiled,
    )
    ops.norms(layer.norm, scanned, scanned, rows=config.heads, size=config.value_dim)
    ops.multiply(scanned, projected.at(config.channels), config.width, _SILU)
    ops.linear(layer.out, scanned, out)


def _of_length(ops: Operations, heads: Buffer, config: DeltaNetConfig, length: float) -> None:
    """Gives each head of q or k a length, by a norm with a suitable weight."""
    dim = config.key_dim
    ops.add(
        "RMS_NORM",
        input=heads,
        out=heads,
        weight=torch.full((dim,), length * dim**-0.5),
        rows=config.key_heads,
        size=dim,
        stride=heads.width,
        factor=LEAST_SQUARE / dim,
    )
