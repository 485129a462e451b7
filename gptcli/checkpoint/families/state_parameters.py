"""Recipes of layers that keep a state, whose names are alike in all families."""

from __future__ import annotations

from gptcli.checkpoint.families.parameters import Parameters
from gptcli.model.config import StateConfig


def state_parameters(parameters: Parameters, ours: str, theirs: str, config: StateConfig) -> None:
    """Adds the recipes of one layer's module."""
    parameters.linear(f"{ours}.into", [f"{theirs}.in_proj"], config.bias)
    parameters.linear(f"{ours}.convolution", [f"{theirs}.conv"], config.bias)
    parameters.linear(f"{ours}.out", [f"{theirs}.out_proj"], config.bias)
