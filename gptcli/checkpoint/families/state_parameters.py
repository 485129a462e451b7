"""Recipes of layers that keep a state, whose names are alike in all families."""

from __future__ import annotations

from gptcli.checkpoint.families.parameters import Parameters
from gptcli.checkpoint.recipes import Take
from gptcli.model.config import Mamba2Config, ShortConvolutionConfig, StateConfig


def state_parameters(parameters: Parameters, ours: str, theirs: str, config: StateConfig) -> None:
    """Adds the recipes of one layer's module."""
    match config:
        case ShortConvolutionConfig(bias=bias):
            _layer(parameters, ours, theirs, "conv", bias, bias, bias)
        case Mamba2Config(bias=bias, convolution_bias=convolution_bias, out_bias=out_bias):
            _layer(parameters, ours, theirs, "conv1d", bias, convolution_bias, bias if out_bias is None else out_bias)
            names = {"decay": "A_log", "step_bias": "dt_bias", "skip": "D"}
            if config.norm_eps is not None:
                names["norm_weight"] = "norm.weight"
            parameters |= {f"{ours}.{mine}": Take(f"{theirs}.{name}") for mine, name in names.items()}


def _layer(parameters: Parameters, ours: str, theirs: str, convolution: str, *biases: bool) -> None:
    names = {"into": "in_proj", "convolution": convolution, "out": "out_proj"}
    for (mine, name), bias in zip(names.items(), biases, strict=True):
        parameters.linear(f"{ours}.{mine}", [f"{theirs}.{name}"], bias)
