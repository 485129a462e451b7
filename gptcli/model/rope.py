"""Rotary position embeddings (Su et al., 2021) and the schemes that stretch them to longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptcli.model.config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeConfig,
    YarnScaling,
)


def rotary_table(
    rope: RopeConfig, length: int, span: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin for positions 0 to length - 1, each (length, 1, dim), in the layout that `rotate` wants.

    span: tokens of the whole text, for LongRoPE. Angles are computed in fp32 for every dtype. The first half of sin is
    negated.
    """
    frequencies, magnitude = _frequencies(rope, span, device)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    cos = angles.cos() * magnitude  # (length, dim / 2)
    sin = angles.sin() * (-magnitude if rope.backward else magnitude)
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head's channel pairs (i, i + dim / 2) by their position's angle; channels past dim stay.

    x: (B, T, heads, head_dim); cos and sin: (T, 1, dim).
    """
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat([rotate(x[..., :dim], cos, sin), x[..., dim:]], -1)
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat([second, first], -1), sin)


def _frequencies(rope: RopeConfig, span: int, device: torch.device) -> tuple[Tensor, float]:
    """Radians per position for each channel pair, (dim / 2,), and the factor of cos and sin."""
    exponents = torch.arange(0, rope.dim, 2, device=device, dtype=torch.float32) / rope.dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor=factor):
            return frequencies / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling), 1.0
        case LongRopeScaling() as scaling:
            factors = scaling.long if span > scaling.original_context else scaling.short
            return frequencies / torch.tensor(factors, device=device), scaling.magnitude
        case ProportionalScaling(rotated=rotated, factor=factor):
            rotates = torch.arange(len(frequencies), device=device) < rotated
            return torch.where(rotates, frequencies / factor, 0.0), 1.0
        case YarnScaling() as scaling:
            return _yarn(frequencies, rope, scaling), scaling.magnitude


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)  # within the original context
    blend = max(scaling.high_freq_factor - scaling.low_freq_factor, 1e-9)  # if they are equal, there is none
    keep = ((turns - scaling.low_freq_factor) / blend).clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def _yarn(frequencies: Tensor, rope: RopeConfig, scaling: YarnScaling) -> Tensor:
    def channel(turns: float) -> float:
        """The channel pair that makes this many turns within the original context."""
        return rope.dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = float(max(low, 0)), float(min(high, rope.dim - 1))  # tensors take no large whole numbers
    if low == high:
        high += 0.001  # a step, without dividing by zero
    stretch = ((torch.arange(rope.dim // 2, device=frequencies.device) - low) / (high - low)).clamp(0, 1)
    return frequencies * (1 - stretch) + frequencies / scaling.factor * stretch
