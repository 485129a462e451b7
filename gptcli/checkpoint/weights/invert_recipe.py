"""The way back: from a decoder's parameters to the tensors of a checkpoint that they are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gptcli.checkpoint.formats import Stored
from gptcli.checkpoint.recipes import (
    Concat,
    EvensThenOdds,
    PlusOne,
    Recipe,
    ReorderedRows,
    Stack,
    Take,
    Transposed,
    WithoutFirst,
    operands_of,
    shape,
    sources,
)
from gptcli.checkpoint.weights.evaluate_recipe import evens_then_odds, reordered_rows

_REVERSIBLE = (Take, Concat, Stack, Transposed, PlusOne, ReorderedRows, EvensThenOdds, WithoutFirst)


def is_reversible(recipe: Recipe) -> bool:
    """Whether a parameter's tensors can be computed from its value: not from a product, nor if it takes one twice."""
    once = len(set(sources(recipe))) == len(sources(recipe))
    return once and isinstance(recipe, _REVERSIBLE) and all(map(is_reversible, operands_of(recipe)))


def tensors_of(
    recipe: Recipe, value: Tensor, stored: Callable[[str], Stored], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The dense tensors, by name, from which a reversible recipe makes this value. They may share its memory.

    read: returns the checkpoint's tensor, for rows that the recipe leaves out.
    """
    match recipe:
        case Take(name):
            return {name: value}
        case Concat(operands, axis):
            sizes = [shape(operand, stored)[axis] for operand in operands]
            parts = torch.split(value, sizes, axis)
        case Stack(operands):
            parts = value.unbind()
        case _:
            operands, parts = operands_of(recipe), (_undone(recipe, value, read),)
    found: dict[str, Tensor] = {}
    for operand, part in zip(operands, parts, strict=True):
        found |= tensors_of(operand, part, stored, read)
    return found


def _undone(recipe: Recipe, value: Tensor, read: Callable[[str], Tensor]) -> Tensor:
    match recipe:
        case Transposed():
            return value.mT
        case PlusOne():
            return value - 1
        case ReorderedRows():
            return value[reordered_rows(recipe, value.shape[0]).argsort()]
        case EvensThenOdds():
            return value[:, evens_then_odds(value.shape[1]).argsort()]
        case WithoutFirst(Take(name), count):
            return torch.cat([read(name)[:count].to(value.dtype), value])
    raise AssertionError(recipe)
