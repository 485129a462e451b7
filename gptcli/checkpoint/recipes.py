"""How one of our parameters is made from tensors of a checkpoint: small trees of plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

from gptcli.checkpoint.formats import Dense, Shape, Stored
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import DecoderConfig


@dataclass(frozen=True)
class Take:
    """A tensor as it is."""

    name: str


@dataclass(frozen=True)
class Concat:
    """Joined along the rows, such as q, k and v in one matrix; these are the axis of that number."""

    parts: tuple[Recipe, ...]
    axis: int = 0


@dataclass(frozen=True)
class Stack:
    """Along a new first axis, such as a matrix an expert."""

    parts: tuple[Recipe, ...]


@dataclass(frozen=True)
class Transposed:
    """The last two axes exchanged: GPT-2 stores (in, out). What is packed is (out, in) in every format, and stays."""

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
        case Concat(parts=parts) | Stack(parts=parts):
            return tuple(chain.from_iterable(map(sources, parts)))
        case _:
            return sources(recipe.part)


def is_transposed(recipe: Recipe, stored: Callable[[str], Stored]) -> bool:
    """Whether what `Transposed` holds has its axes still to be exchanged."""
    return any(isinstance(stored(name), Dense) for name in sources(recipe))


def shape(recipe: Recipe, stored: Callable[[str], Stored]) -> Shape:
    """The shape of what a recipe makes, from how its sources are stored.

    Raises BrokenCheckpoint where their shapes do not go together.
    """
    match recipe:
        case Take(name):
            return stored(name).shape
        case Concat(parts, axis):
            first, *others = shapes = [shape(part, stored) for part in parts]
            if len(first) <= axis or any(_without(axis, other) != _without(axis, first) for other in others):
                raise _misfit(recipe, shapes)
            return (*first[:axis], sum(part[axis] for part in shapes), *first[axis + 1 :])
        case Stack(parts):
            shapes = [shape(part, stored) for part in parts]
            if len(set(shapes)) != 1:
                raise _misfit(recipe, shapes)
            return (len(parts), *shapes[0])
        case Transposed(part) if is_transposed(part, stored):
            found = shape(part, stored)
            if len(found) < 2:
                raise _misfit(recipe, [found])
            *outer, rows, columns = found
            return (*outer, columns, rows)
        case _:
            return shape(recipe.part, stored)


def _without(axis: int, shape: Shape) -> Shape:
    return shape[:axis] + (0,) + shape[axis + 1 :]


def _misfit(recipe: Recipe, shapes: list[Shape]) -> BrokenCheckpoint:
    found = ", ".join(sorted({str(list(shape)) for shape in shapes}))
    return BrokenCheckpoint(f"tensors such as {sources(recipe)[0]} do not go together: they are {found}")


@dataclass(frozen=True)
class Architecture:
    """What a family makes of a checkpoint: the decoder, where its parameters come from, and what may lie unused."""

    config: DecoderConfig
    parameters: Mapping[str, Recipe]  # our parameter's name -> how to obtain it
    ignorable: tuple[str, ...] = ()  # endings of tensor names that carry nothing the model needs
    unused_parts: tuple[str, ...] = ()  # beginnings of the names of parts that are no decoder
