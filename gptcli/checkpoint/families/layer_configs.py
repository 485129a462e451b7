"""What families share: reading facts about layers from config.json, and changing all layers of a DecoderConfig."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import Activation, DecoderConfig, StateConfig

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}


def activation(hf: HfConfig, field: str, default: str) -> Activation:
    """An activation by its name in transformers. Raises UnsupportedArchitecture for others."""
    name = hf.string(field, default)
    if name not in _ACTIVATIONS:
        raise UnsupportedArchitecture(f"config.json: {field} {name!r} is not supported")
    return _ACTIVATIONS[name]


def head_dim_of(hf: HfConfig, hidden: int, heads: int, default: int | None = None) -> int:
    """Channels per head: `head_dim`, else the default, else hidden / heads. Raises BrokenCheckpoint for fractions."""
    given = hf.optional_integer("head_dim") or default
    if given is None and hidden % heads:
        raise BrokenCheckpoint(f"config.json: hidden_size {hidden} cannot be split into {heads} heads evenly")
    return given or hidden // heads


def check_shared(heads: int, kv_heads: int) -> None:
    """Raises BrokenCheckpoint unless heads of queries can share those of keys and values evenly."""
    if heads % kv_heads:
        raise BrokenCheckpoint(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly")


def windows(
    types: Sequence[object], window: int | None, limited: str = "sliding_attention", field: str = "sliding_window"
) -> list[int | None]:
    """The attention window of each layer, from `layer_types`; None attends to all.

    limited: the layer type that has the window. field: where config.json has it, for errors. Raises BrokenCheckpoint if
    it is missing, and as `check_types`.
    """
    check_types(types, "full_attention", limited)
    if window is None and limited in types:
        raise BrokenCheckpoint(f"config.json: layer_types has {limited}, but there is no {field}")
    return [window if kind == limited else None for kind in types]


def check_types(types: Sequence[object], *known: str) -> None:
    """Raises UnsupportedArchitecture for a layer type that is not known."""
    if unknown := {str(kind) for kind in types} - set(known):
        raise UnsupportedArchitecture(f"config.json: layer type {min(unknown)!r} is not supported")


def full_every(period: int, layers: int) -> list[str]:
    """`layer_types` where every period-th layer attends to all and the others slide."""
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]


def with_attention(config: DecoderConfig, **changes: Any) -> DecoderConfig:
    """The decoder with these fields of AttentionConfig changed in every layer."""
    return with_attention_per_layer(config, **{name: [value] * len(config.blocks) for name, value in changes.items()})


def with_attention_per_layer(config: DecoderConfig, **changes: Sequence[Any]) -> DecoderConfig:
    """The decoder with these fields of AttentionConfig changed to one value per layer."""
    rows = [dict(zip(changes, row, strict=True)) for row in zip(*changes.values(), strict=True)]
    blocks = zip(config.blocks, rows, strict=True)
    return replace(
        config,
        blocks=tuple(
            replace(block, attention=block.attention and replace(block.attention, **row)) for block, row in blocks
        ),
    )


def with_state(config: DecoderConfig, state: StateConfig, layers: Sequence[bool]) -> DecoderConfig:
    """The decoder with a state instead of attention in these layers."""
    blocks = zip(config.blocks, layers, strict=True)
    return replace(
        config, blocks=tuple(replace(block, attention=None, state=state) if has else block for block, has in blocks)
    )


def with_blocks(config: DecoderConfig, **changes: Any) -> DecoderConfig:
    """The decoder with these fields of BlockConfig changed in every layer."""
    return replace(config, blocks=tuple(replace(block, **changes) for block in config.blocks))
