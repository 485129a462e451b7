"""How one of our parameters is made from tensors of a checkpoint: small trees of plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

from gptcli.model.config import DecoderConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Take:
    """A tensor as it is."""

    name: str


@dataclass(frozen=True)
class Concat:
    """Joined along the rows, such as q, k and v in one matrix."""

    parts: tuple[Recipe, ...]


@dataclass(frozen=True)
class Stack:
    """Along a new first axis, such as a matrix an expert."""

    parts: tuple[Recipe, ...]


@dataclass(frozen=True)
class Transposed:
    """The last two axes exchanged: GPT-2 stores (in, out)."""

    part: Recipe


@dataclass(frozen=True)
class PlusOne:
    """1 added, in fp32: Gemma stores what its norms' weights differ from 1."""

    part: Recipe


@dataclass(frozen=True)
class PairsToHalves:
    """Rows of q or k whose RoPE turns neighbouring channels, reordered for one that turns halves against each other.

    In each of `heads` heads the first `dim` rows change places; scores of q and k come out the same.
    """

    part: Recipe
    heads: int
    dim: int


@dataclass(frozen=True)
class HeadsToParts:
    """Rows stored head by head as [q k v], regrouped as all q, all k, all v (GPT-NeoX)."""

    part: Recipe
    heads: int


@dataclass(frozen=True)
class EvensThenOdds:
    """Along the second axis, every other entry first: gpt-oss interleaves gate and up."""

    part: Recipe


Recipe = Take | Concat | Stack | Transposed | PlusOne | PairsToHalves | HeadsToParts | EvensThenOdds


def sources(recipe: Recipe) -> tuple[str, ...]:
    """Names of the checkpoint's tensors that a recipe needs."""
    match recipe:
        case Take(name):
            return (name,)
        case Concat(parts) | Stack(parts):
            return tuple(chain.from_iterable(map(sources, parts)))
        case _:
            return sources(recipe.part)


def shape(recipe: Recipe, shape_of: Callable[[str], Shape]) -> Shape:
    """The shape of what a recipe makes, from its sources' shapes."""
    match recipe:
        case Take(name):
            return shape_of(name)
        case Concat(parts):
            shapes = [shape(part, shape_of) for part in parts]
            return (sum(rows for rows, *_ in shapes), *shapes[0][1:])
        case Stack(parts):
            return (len(parts), *shape(parts[0], shape_of))
        case Transposed(part):
            *outer, rows, columns = shape(part, shape_of)
            return (*outer, columns, rows)
        case _:
            return shape(recipe.part, shape_of)


@dataclass(frozen=True)
class Architecture:
    """What a family makes of a checkpoint: the decoder, where its parameters come from, and what may lie unused."""

    config: DecoderConfig
    parameters: Mapping[str, Recipe]  # our parameter's name -> how to obtain it
    ignorable: tuple[str, ...] = ()  # endings of tensor names that carry nothing the model needs
    unused_parts: tuple[str, ...] = ()  # beginnings of the names of parts that are no decoder
