"""How one of our parameters is made from tensors of a checkpoint. Plain data: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gptcli.model.config import DecoderConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Take:
    """The tensor as it is."""

    name: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the checkpoint's tensors."""
        return (self.name,)

    def shape(self, shape_of: Callable[[str], Shape]) -> Shape:
        """The result's shape, from the sources' shapes."""
        return shape_of(self.name)


@dataclass(frozen=True)
class Concat:
    """Tensors joined along their rows, such as q, k and v in one matrix."""

    names: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the checkpoint's tensors."""
        return self.names

    def shape(self, shape_of: Callable[[str], Shape]) -> Shape:
        """The result's shape, from the sources' shapes."""
        shapes = [shape_of(name) for name in self.names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


Recipe = Take | Concat


@dataclass(frozen=True)
class Architecture:
    """What a family makes of a checkpoint: the decoder, where its parameters come from, and what may lie unused."""

    config: DecoderConfig
    parameters: Mapping[str, Recipe]  # our parameter's name -> how to obtain it
    ignorable: tuple[str, ...] = ()  # endings of tensor names that carry nothing the model needs
