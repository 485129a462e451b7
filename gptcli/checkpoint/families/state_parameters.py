"""Recipes of layers that keep a state; all families name their tensors alike."""

from __future__ import annotations

from collections.abc import Collection

from gptcli.checkpoint.families.parameters import Parameters
from gptcli.checkpoint.recipes import GroupsToParts, Take
from gptcli.model.config import DeltaNetConfig, Mamba2Config, ShortConvolutionConfig, StateConfig


def state_parameters(
    parameters: Parameters, ours: str, theirs: str, config: StateConfig, tensors: Collection[str]
) -> None:
    """Adds the recipes of one layer's module."""
    match config:
        case DeltaNetConfig():
            _delta_net(parameters, ours, theirs, config, tensors)
        case ShortConvolutionConfig(bias=bias):
            _layer(parameters, ours, theirs, "conv", bias, bias, bias)
        case Mamba2Config(bias=bias, convolution_bias=convolution_bias, out_bias=out_bias):
            _layer(parameters, ours, theirs, "conv1d", bias, convolution_bias, bias if out_bias is None else out_bias)
            names = {"decay": "A_log", "step_bias": "dt_bias", "skip": "D"}
            if config.norm_eps is not None:
                names["norm_weight"] = "norm.weight"
            parameters |= {f"{ours}.{mine}": Take(f"{theirs}.{name}") for mine, name in names.items()}


def _delta_net(
    parameters: Parameters, ours: str, theirs: str, config: DeltaNetConfig, tensors: Collection[str]
) -> None:
    values = config.heads // config.key_heads  # value heads of each key head
    in_groups = {  # of a key head, where they are in one tensor
        "into": ("qkvz", (config.key_dim, config.key_dim, values * config.value_dim, values * config.value_dim)),
        "rates": ("ba", (1, 1)),
    }
    for mine, apart in {"into": ("qkv", "z"), "rates": ("b", "a")}.items():
        name, parts = in_groups[mine]
        if (whole := f"{theirs}.in_proj_{name}.weight") in tensors:
            parameters[f"{ours}.{mine}.weight"] = GroupsToParts(Take(whole), config.key_heads, parts)
        else:
            parameters.linear(f"{ours}.{mine}", [f"{theirs}.in_proj_{each}" for each in apart], bias=False)
    names = {"convolution.weight": "conv1d.weight", "out.weight": "out_proj.weight", "norm.weight": "norm.weight"}
    names |= {"decay": "A_log", "step_bias": "dt_bias"}
    parameters |= {f"{ours}.{mine}": Take(f"{theirs}.{name}") for mine, name in names.items()}


def _layer(parameters: Parameters, ours: str, theirs: str, convolution: str, *biases: bool) -> None:
    names = {"into": "in_proj", "convolution": convolution, "out": "out_proj"}
    for (mine, name), bias in zip(names.items(), biases, strict=True):
        parameters.linear(f"{ours}.{mine}", [f"{theirs}.{name}"], bias)
