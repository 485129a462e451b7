"""Carries out recipes: makes values from a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gptcli.checkpoint.formats import Dense
from gptcli.checkpoint.recipes import (
    Concat,
    EvensThenOdds,
    GroupsToParts,
    HeadRows,
    HeadsToQkv,
    PairsToHalves,
    PlusOne,
    Product,
    Ranges,
    Recipe,
    ReorderedRows,
    Sinusoids,
    Slice,
    Stack,
    Take,
    Transposed,
    WithoutFirst,
    is_transposed,
    shape,
    sources,
)
from gptcli.checkpoint.weights.tensor_source import TensorSource, ranges_of
from gptcli.quant.packed import PackedWeight, alike, concat_rows, stack


def evaluate(recipe: Recipe, source: TensorSource) -> Tensor | PackedWeight:
    """The value that a recipe makes from a checkpoint's tensors. Raises as `TensorSource.weight` does."""
    match recipe:
        case Take(name):
            return source.weight(name)
        case Concat(operands, axis):
            return concatenated([evaluate(each, source) for each in operands], axis)
        case Stack(operands):
            return _joined([evaluate(each, source) for each in operands], stack, torch.stack)
        case Transposed(operand):
            value = evaluate(operand, source)
            return dense(value).mT.contiguous() if is_transposed(operand, source.stored) else value
        case PlusOne(operand):
            return fp32(evaluate(operand, source)) + 1
        case ReorderedRows(operand):
            value = evaluate(operand, source)
            return rows_of(value, reordered_rows(recipe, value.shape[0]))
        case HeadRows(keys, values):
            return torch.cat([fp32(evaluate(keys, source)).mT, fp32(evaluate(values, source))], 1).flatten(0, 1)
        case WithoutFirst(operand, count):
            value = evaluate(operand, source)
            return rows_of(value, torch.arange(count, value.shape[0]))
        case Product(left, right, transposed):
            factor = fp32(evaluate(right, source))
            return fp32(evaluate(left, source)) @ (factor.mT if transposed else factor)
        case Sinusoids():
            return _sinusoids(recipe)
        case Slice():
            return _slice(recipe, source)
        case EvensThenOdds(operand):
            value = evaluate(operand, source)
            order = evens_then_odds(value.shape[1])
            return value[:, order] if isinstance(value, Tensor) else value.rows(order)


def stored_apart(recipe: Recipe, source: TensorSource) -> tuple[Recipe, ...]:
    """The operands of a recipe that joins rows stored in several forms; else the recipe alone."""
    whole = recipe
    if isinstance(recipe, Slice):
        whole = _of_operands(recipe, source) or recipe
    if not isinstance(whole, Concat) or whole.axis != 0:
        return (recipe,)
    forms = {frozenset((type(s), s.about) for s in map(source.stored, sources(each))) for each in whole.operands}
    return whole.operands if len(forms) > 1 else (recipe,)


def evens_then_odds(count: int) -> Tensor:
    """The order in which `EvensThenOdds` takes entries: their indices, (count,)."""
    return torch.arange(count).view(-1, 2).t().flatten()


def _slice(recipe: Slice, source: TensorSource) -> Tensor | PackedWeight:
    """Evaluates slices of the operand's own operands where that gives the same, so that only these are read."""
    axis, ranges = recipe.axis, recipe.ranges
    if isinstance(recipe.operand, Take) and isinstance(source.stored(recipe.operand.name), Dense):
        return source.slice(recipe.operand.name, axis, ranges)
    if (same := _of_operands(recipe, source)) is not None:
        return evaluate(same, source)
    value = evaluate(recipe.operand, source)
    if isinstance(value, PackedWeight):
        indices = torch.cat([torch.arange(*each) for each in ranges])
        packed = value.rows(indices) if axis == -2 else value.columns(ranges)
        if packed is not None:
            return packed
    return ranges_of(dense(value), axis, ranges)


def _of_operands(recipe: Slice, source: TensorSource) -> Recipe | None:
    """A recipe that makes the same of slices of the operand's own operands; None if there is none."""
    axis, ranges = recipe.axis, recipe.ranges
    match recipe.operand:
        case Concat(operands, joined):
            if joined - len(shape(operands[0], source.stored)) == axis:
                return Concat(_overlaps(operands, axis, ranges, source), joined)
            return Concat(tuple(Slice(each, axis, ranges) for each in operands), joined)
        case Stack(operands):
            return Stack(tuple(Slice(each, axis, ranges) for each in operands))
        case Transposed(operand) if is_transposed(operand, source.stored):
            return Transposed(Slice(operand, -3 - axis, ranges))
        case Transposed(operand):
            return Slice(operand, axis, ranges)
    return None


def _overlaps(operands: tuple[Recipe, ...], axis: int, ranges: Ranges, source: TensorSource) -> tuple[Recipe, ...]:
    """The parts of operands joined along an axis that fall in ranges of the whole."""
    parts, first = [], 0
    for operand in operands:
        end = first + shape(operand, source.stored)[axis]
        inside = [(max(start, first) - first, min(stop, end) - first) for start, stop in ranges]
        if within := tuple((start, stop) for start, stop in inside if start < stop):
            parts.append(Slice(operand, axis, within))
        first = end
    return tuple(parts)


def dense(value: Tensor | PackedWeight) -> Tensor:
    """A value as a tensor: packed ones become fp32, tensors stay."""
    return value.dequantize(torch.float32) if isinstance(value, PackedWeight) else value


def fp32(value: Tensor | PackedWeight) -> Tensor:
    """A value as a tensor in fp32."""
    return dense(value).float()


def concatenated(values: list[Tensor | PackedWeight], axis: int = 0) -> Tensor | PackedWeight:
    """Values that follow each other along an axis, as one; packed if all are packed alike."""
    return values[0] if len(values) == 1 else _joined(values, concat_rows, partial(torch.cat, dim=axis))


def _joined(
    values: list[Tensor | PackedWeight],
    join_packed: Callable[[list[PackedWeight]], PackedWeight],
    join_dense: Callable[[list[Tensor]], Tensor],
) -> Tensor | PackedWeight:
    """Several values joined; the result stays packed if all are packed alike."""
    packed = [value for value in values if isinstance(value, PackedWeight)]
    if len(packed) == len(values) and alike(packed):
        return join_packed(packed)
    return join_dense(list(map(dense, values)))


def rows_of(value: Tensor | PackedWeight, indices: Tensor) -> Tensor | PackedWeight:
    """The chosen rows of a value, in the same form. indices: (n,)."""
    return value[indices] if isinstance(value, Tensor) else value.rows(indices)


def reordered_rows(recipe: PairsToHalves | HeadsToQkv | GroupsToParts, rows: int) -> Tensor:
    """The indices, (rows,), of its operand's rows in a recipe's order."""
    indices = torch.arange(rows)
    match recipe:
        case PairsToHalves():
            return _pairs_to_halves(recipe, indices)
        case HeadsToQkv():
            return _heads_to_qkv(recipe, indices)
        case GroupsToParts():
            return _groups_to_parts(recipe, indices)


def _pairs_to_halves(recipe: PairsToHalves, rows: Tensor) -> Tensor:
    """Row indices (rows,): even ones precede odd ones among each head's `dim` rotated rows; others stay."""
    heads, rest = rows.view(recipe.heads + recipe.others, -1).tensor_split([recipe.heads])
    before, rotated, after = heads.tensor_split([recipe.skipped, recipe.skipped + recipe.dim], dim=1)
    ordered = torch.cat([before, rotated[:, ::2], rotated[:, 1::2], after], dim=1)
    return torch.cat([ordered.flatten(), rest.flatten()])


def _heads_to_qkv(recipe: HeadsToQkv, rows: Tensor) -> Tensor:
    """Row indices (rows,): those of q, then of k, then of v."""
    queries = recipe.queries
    q, first, second = rows.view(recipe.groups, queries + 2, -1).tensor_split([queries, queries + 1], dim=1)
    k, v = (second, first) if recipe.values_first else (first, second)
    return torch.cat([q.flatten(), k.flatten(), v.flatten()])


def _groups_to_parts(recipe: GroupsToParts, rows: Tensor) -> Tensor:
    """Row indices (rows,): those of one part in all groups, then of the next."""
    grouped = rows.view(recipe.groups, -1)
    unit = grouped.shape[1] // sum(recipe.parts)
    parts = torch.split(grouped, [unit * part for part in recipe.parts], 1)
    return torch.cat([parts[index].flatten() for index in recipe.order or range(len(parts))])


def _sinusoids(recipe: Sinusoids) -> Tensor:
    half = recipe.columns // 2
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(recipe.first, recipe.first + recipe.rows).float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
