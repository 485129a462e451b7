"""What families are put together from: fields that many configs share, and names of parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Concat, Recipe, Take
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import Activation, AttentionConfig, BlockConfig, DecoderConfig, NormConfig

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation(hf: HfConfig, field: str, default: str) -> Activation:
    """An activation by the name transformers gives it. Raises UnsupportedArchitecture for others."""
    name = hf.text(field, default)
    if name not in _ACTIVATIONS:
        raise UnsupportedArchitecture(f"config.json: {field} {name!r} is not supported")
    return _ACTIVATIONS[name]


def head_dim_of(hf: HfConfig, hidden: int, heads: int, default: int | None = None) -> int:
    """Channels of a head; hidden / heads where the config does not say."""
    given = hf.optional_whole("head_dim") or default
    if given is None and hidden % heads:
        raise BrokenCheckpoint(f"config.json: hidden_size {hidden} cannot be split into {heads} heads evenly")
    return given or hidden // heads


def windows(types: Sequence[object], window: int | None) -> list[int | None]:
    """The attention window of each layer, from `layer_types` and the window of the sliding ones."""
    unknown = {str(kind) for kind in types} - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedArchitecture(f"config.json: layer type {min(unknown)!r} is not supported")
    if window is None and "sliding_attention" in types:
        raise BrokenCheckpoint("config.json: layer_types has sliding_attention, but there is no sliding_window")
    return [window if kind == "sliding_attention" else None for kind in types]


def every(period: int, layers: int) -> list[str]:
    """`layer_types` in which every period-th layer is a full one and the others slide."""
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]


def root(tensors: Collection[str], prefix: str, probe: str) -> str:
    """The prefix of the decoder's tensors: what AutoModel saves has none."""
    return "" if probe in tensors else prefix


Make = Callable[[Recipe], Recipe]


def as_it_is(recipe: Recipe) -> Recipe:
    """The recipe itself."""
    return recipe


class Parameters(dict[str, Recipe]):
    """Recipes by our parameters' names."""

    def linear(
        self, ours: str, theirs: Sequence[str], bias: bool, make: Sequence[Make] = (), weight: Make = as_it_is
    ) -> None:
        """A linear layer made of one or several: `make` changes the rows of each, `weight` the weights alone."""
        make = make or [as_it_is] * len(theirs)
        for leaf in ("weight", "bias") if bias else ("weight",):
            parts = [change(Take(f"{name}.{leaf}")) for name, change in zip(theirs, make, strict=True)]
            self[f"{ours}.{leaf}"] = joined([weight(part) for part in parts] if leaf == "weight" else parts)

    def norm(self, ours: str, theirs: str | None, config: NormConfig, weight: Make = as_it_is) -> None:
        """A norm's weight and bias, where there is one and it has them."""
        if theirs is not None and config.weight:
            self[f"{ours}.weight"] = weight(Take(f"{theirs}.weight"))
        if theirs is not None and config.bias:
            self[f"{ours}.bias"] = Take(f"{theirs}.bias")


def joined(parts: Sequence[Recipe]) -> Recipe:
    """One part as it is, several one below the other."""
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def each_attention(config: DecoderConfig, edit: Callable[[int, AttentionConfig], AttentionConfig]) -> DecoderConfig:
    """The decoder with every layer's attention changed; `edit` gets the layer's index and its config."""
    blocks = (replace(block, attention=edit(layer, block.attention)) for layer, block in enumerate(config.blocks))
    return replace(config, blocks=tuple(blocks))


def each_block(config: DecoderConfig, edit: Callable[[int, BlockConfig], BlockConfig]) -> DecoderConfig:
    """The decoder with every layer changed; `edit` gets the layer's index and its config."""
    return replace(config, blocks=tuple(edit(layer, block) for layer, block in enumerate(config.blocks)))
