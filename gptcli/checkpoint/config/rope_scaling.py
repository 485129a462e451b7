"""Reads RoPE's scaling to longer contexts from its settings in a config.json."""

from __future__ import annotations

import math

from gptcli.checkpoint.config.typed_fields import TypedFields
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import LinearScaling, Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling

_MIN_TURNS, _MAX_TURNS = 1e-9, 1e9  # full rotations within a context


def rope_scaling(rope: TypedFields, kind: str, dim: int, context: int, original: int) -> RopeScaling | None:
    """The scaling of a RoPE type; None is plain RoPE. Raises UnsupportedArchitecture for an unknown type.

    dim: rotated channels. context: the longest text's tokens; original: the same before the scaling.
    """
    match kind:
        case "default":
            return None
        case "dynamic":
            rope.number("factor")  # takes effect beyond `max_position_embeddings`, where our context ends
            return None
        case "linear":
            return LinearScaling(factor=rope.number("factor"))
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low > high:
                raise BrokenCheckpoint(f"{rope.where}: low_freq_factor must not be above high_freq_factor")
            return Llama3Scaling(
                factor=rope.number("factor"), low_freq_factor=low, high_freq_factor=high, original_context=original
            )
        case "yarn":
            factor = rope.number("factor", context / original)
            return YarnScaling(
                factor=factor,
                original_context=original,
                magnitude=_yarn_magnitude(rope, factor),
                beta_fast=rope.nonzero("beta_fast", low=_MIN_TURNS, high=_MAX_TURNS) or 32.0,
                beta_slow=rope.nonzero("beta_slow", low=_MIN_TURNS, high=_MAX_TURNS) or 1.0,
                truncate=rope.flag("truncate", True),
            )
        case "longrope" | "su":
            if original < 2:
                raise BrokenCheckpoint(f"{rope.where}: original_max_position_embeddings must be at least 2")
            return LongRopeScaling(
                short=rope.numbers("short_factor", dim // 2),
                long=rope.numbers("long_factor", dim // 2),
                original_context=original,
                magnitude=_longrope_magnitude(rope, context, original),
            )
    raise UnsupportedArchitecture(f"{rope.where} type {kind!r} is not supported")


def yarn_mscale(factor: float, weight: float) -> float:
    """The factor of queries and keys in a context stretched by `factor` (Peng et al., 2023)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_magnitude(rope: TypedFields, factor: float) -> float:
    given = rope.optional_number("attention_factor")
    numerator, denominator = rope.nonzero("mscale"), rope.nonzero("mscale_all_dim")
    if given is not None:
        return given
    if numerator is None or denominator is None:
        return yarn_mscale(factor, 1.0)
    return yarn_mscale(factor, numerator) / yarn_mscale(factor, denominator)


def _longrope_magnitude(rope: TypedFields, context: int, original: int) -> float:
    factor = rope.number("factor", context / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return rope.number("attention_factor", default)
