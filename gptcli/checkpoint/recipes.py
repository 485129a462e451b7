"""How each of our parameters is made from tensors of a checkpoint: small expression trees of plain data, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
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
    """Joined along an axis, such as q, k and v in one matrix along its rows."""

    operands: tuple[Recipe, ...]
    axis: int = 0


@dataclass(frozen=True)
class Stack:
    """Joined along a new first axis, such as one matrix per expert."""

    operands: tuple[Recipe, ...]


@dataclass(frozen=True)
class Transposed:
    """The last two axes exchanged: GPT-2 stores (in, out). Packed weights stay: every format stores (out, in)."""

    operand: Recipe


@dataclass(frozen=True)
class PlusOne:
    """Plus 1, in fp32: Gemma stores its norms' weights less 1."""

    operand: Recipe


@dataclass(frozen=True)
class ReorderedRows:
    """The same rows in another order, given by the subclass."""

    operand: Recipe


@dataclass(frozen=True)
class PairsToHalves(ReorderedRows):
    """Rows of q or k for RoPE on neighbouring channels, reordered for RoPE by halves.

    Reorders `dim` rows of each of `heads` heads, after its first `skipped`; `others` are heads after them that stay.
    Products of q and k do not change.
    """

    heads: int
    dim: int
    others: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class HeadRows:
    """The matrix that makes keys and values from a latent: each head's rows for keys, then for values, in fp32.

    keys: for each head a matrix from queries to latents, (heads, columns, dim). values: (heads, dim, columns).
    """

    keys: Recipe
    values: Recipe


@dataclass(frozen=True)
class HeadsToQkv(ReorderedRows):
    """Rows stored as [q k v] per group of heads, regrouped as all q, all k, all v (GPT-NeoX).

    queries: the rows of q per row of k. values_first: the order is [q v k] (CodeGen).
    """

    groups: int
    queries: int = 1
    values_first: bool = False


@dataclass(frozen=True)
class GroupsToParts(ReorderedRows):
    """Rows stored as parts of these sizes per group, regrouped as all of one part, then all of the next.

    parts: relative sizes. order: of the parts in the result; None keeps theirs.
    """

    groups: int
    parts: tuple[int, ...]
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class WithoutFirst:
    """The rows after the first `count`: OPT counts positions from 2."""

    operand: Recipe
    count: int


@dataclass(frozen=True)
class Product:
    """`left @ right`, or `left @ right.T`, in fp32: an embedding and its projection. left: (rows, rank)."""

    left: Recipe
    right: Recipe
    transposed: bool = False


@dataclass(frozen=True)
class Sinusoids:
    """Positions as sines, then cosines, of falling frequencies: (rows, columns), from position `first` on (XGLM)."""

    rows: int
    columns: int
    first: int


@dataclass(frozen=True)
class EvensThenOdds:
    """Even entries of the second axis, then odd ones: gpt-oss interleaves gate and up."""

    operand: Recipe


Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Slice:
    """Ranges (start, stop) of an axis, one after the other: a rank's shard of a parameter.

    axis: counted from the last, which is -1.
    """

    operand: Recipe
    axis: int
    ranges: Ranges


Recipe = (
    Take
    | Concat
    | Stack
    | Transposed
    | PlusOne
    | PairsToHalves
    | HeadRows
    | HeadsToQkv
    | GroupsToParts
    | WithoutFirst
    | EvensThenOdds
    | Product
    | Sinusoids
    | Slice
)


def operands_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipes that a recipe combines."""
    match recipe:
        case Take() | Sinusoids():
            return ()
        case Concat(operands=operands) | Stack(operands=operands):
            return operands
        case Product(left, right) | HeadRows(left, right):
            return left, right
        case _:
            return (recipe.operand,)


def sources(recipe: Recipe) -> tuple[str, ...]:
    """Names of the checkpoint's tensors that a recipe takes."""
    if isinstance(recipe, Take):
        return (recipe.name,)
    return tuple(chain.from_iterable(map(sources, operands_of(recipe))))


def is_transposed(operand: Recipe, stored: Callable[[str], Stored]) -> bool:
    """Whether `Transposed` must exchange its operand's axes; packed weights have them in order already."""
    return any(isinstance(stored(name), Dense) for name in sources(operand))


def shape(recipe: Recipe, stored: Callable[[str], Stored]) -> Shape:
    """The shape of a recipe's result, from how its tensors are stored.

    Raises BrokenCheckpoint if their shapes do not fit together.
    """
    if isinstance(recipe, Take):
        return stored(recipe.name).shape
    if isinstance(recipe, Sinusoids):
        return recipe.rows, recipe.columns
    shapes = [shape(operand, stored) for operand in operands_of(recipe)]
    first, *further = shapes
    match recipe:
        case Concat(axis=axis):
            if len(first) <= axis or any(_without(axis, other) != _without(axis, first) for other in further):
                raise _misfit(recipe, shapes)
            return (*first[:axis], sum(each[axis] for each in shapes), *first[axis + 1 :])
        case Stack():
            if len(set(shapes)) != 1:
                raise _misfit(recipe, shapes)
            return (len(shapes), *first)
        case Transposed(operand) if is_transposed(operand, stored):
            if len(first) < 2:
                raise _misfit(recipe, shapes)
            *outer, rows, columns = first
            return (*outer, columns, rows)
        case Slice(axis=axis, ranges=ranges):
            size = sum(stop - start for start, stop in ranges)
            return (*first[:axis], size, *first[axis:][1:])
        case WithoutFirst(count=count):
            if not first or first[0] < count:
                raise _misfit(recipe, shapes)
            return (first[0] - count, *first[1:])
        case Product(transposed=transposed):
            second = further[0][::-1] if transposed else further[0]
            if not len(first) == len(second) == 2 or first[1] != second[0]:
                raise _misfit(recipe, shapes)
            return (first[0], second[1])
        case HeadRows():
            values = further[0]
            if not len(first) == len(values) == 3 or first[:2] != (values[0], values[2]):
                raise _misfit(recipe, shapes)
            return (first[0] * (first[2] + values[1]), first[1])
    return first


def _without(axis: int, shape: Shape) -> Shape:
    return shape[:axis] + (0,) + shape[axis + 1 :]


def _misfit(recipe: Recipe, shapes: list[Shape]) -> BrokenCheckpoint:
    found = ", ".join(sorted({str(list(shape)) for shape in shapes}))
    return BrokenCheckpoint(f"tensors such as {sources(recipe)[0]} do not go together: they are {found}")


@dataclass(frozen=True)
class Architecture:
    """A family's reading of a checkpoint: the decoder, a recipe for each of its parameters, and what may be unused.

    unused_suffixes: of tensors that the model does not need. unused_prefixes: of modules outside the decoder. ahead:
    prefixes of layers that predict tokens further ahead. left_over: config fields that nothing reads. reads_images:
    whether the model reads images, too; here it reads text alone.
    """

    config: DecoderConfig
    parameters: Mapping[str, Recipe]
    unused_suffixes: tuple[str, ...] = ()
    unused_prefixes: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    reads_images: bool = False

    @cached_property
    def tensors(self) -> dict[str, None]:
        """The names of all tensors that the parameters are made of, in order."""
        return dict.fromkeys(chain.from_iterable(map(sources, self.parameters.values())))
