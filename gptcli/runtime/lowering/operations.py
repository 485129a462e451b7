"""The list of operations that lowering builds, and the operations that all layers need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gptcli.kernels.bindings import ACTIVATIONS, IDENTITY, Matrix, Op
from gptcli.kernels.layers import CompiledEmbedding, CompiledLinear, JoinedLinear
from gptcli.kernels.tensors import Library
from gptcli.model.config import DecoderConfig, other_field
from gptcli.model.linear import AdaptedLinear, Embedding, Linear
from gptcli.model.norm import Norm
from gptcli.runtime.program import Buffer, Vector

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Unsupported(Exception):
    """The decoder needs an operation that the compiled kernels lack."""


def handles(config: DataclassInstance, *names: str) -> None:
    """Raises Unsupported if a field of a config that is not among `names` differs from its default."""
    if (other := other_field(config, *names)) is not None:
        raise Unsupported(other)


def vector_of(values: Tensor) -> Vector:
    """The address of fp32 values."""
    assert values.dtype == torch.float32 and values.is_contiguous()
    return Vector(values.data_ptr(), values.nbytes, values)


def activation_number(name: str) -> int:
    """The kernels' number of a `config.Activation`."""
    if name not in ACTIVATIONS:
        raise Unsupported(name)
    return ACTIVATIONS[name]


# What reads a token's text or its position in it, and so must compute all tokens.
_OF_TEXTS = ("EMBED", "ROTATE", "SCALE_BY_POSITION", "ATTEND", "BY_HEAD", "EXPAND", "CONVOLVE", "RECUR")


@dataclass
class Operations:
    """Operations so far, and what each reads and writes; see `Program`.

    ropes, windows: those of all layers, whose indices operations use. attends: for each layer, the operation that
    stores its keys and values.
    """

    config: DecoderConfig
    library: Library
    ops: list[Op] = field(default_factory=list)
    uses: list[tuple[int, str, Buffer]] = field(default_factory=list)
    matrices: list[tuple[int, Matrix]] = field(default_factory=list)
    vectors: list[tuple[int, str, Vector]] = field(default_factory=list)
    attends: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attentions = self.config.attentions
        self.ropes = list(dict.fromkeys(attention.rope for attention in attentions if attention.rope is not None))
        self.windows = list(dict.fromkeys(attention.window for attention in attentions))

    def add(
        self,
        code: str,
        *,
        matrices: Sequence[Matrix] = (),
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        **fields: float | Buffer | None,
    ) -> int:
        """Adds an operation with the fields of kernels.h's Op; returns its number."""
        if any(vector is not None and vector.dtype != torch.float32 for vector in (weight, bias)):
            raise Unsupported("a vector that is not in fp32")
        index = len(self.ops)
        numbers = {name: value for name, value in fields.items() if isinstance(value, int | float)}
        self.ops.append(Op(code=self.library.code(code), **numbers))
        self.matrices += [(index, matrix) for matrix in matrices]
        for name, vector in (("weight", weight), ("bias", bias)):
            if vector is not None:
                self.vectors.append((index, name, vector_of(vector)))
        self.uses += [(index, name, rows) for name, rows in fields.items() if isinstance(rows, Buffer)]
        return index

    def narrow(self) -> None:
        """Makes what follows the last operation of texts compute the wanted tokens alone."""
        of_texts = set(map(self.library.code, _OF_TEXTS))
        last = max(index for index, op in enumerate(self.ops) if op.code in of_texts)
        self.ops[last].narrow = self.ops[last].code == self.library.code("ATTEND")
        for op in self.ops[last + 1 :]:
            op.narrow = 1
        before = {rows.name: rows.width for index, _, rows in self.uses if index <= last}
        after = {rows.name for index, _, rows in self.uses if index > last}
        moves = [Buffer(name, width) for name, width in before.items() if name in after]
        self.ops[last + 1 : last + 1] = [Op(code=self.library.code("NARROW"), size=rows.width) for rows in moves]

        def moved(index: int) -> int:
            return index + len(moves) if index > last else index

        self.uses = [(moved(index), name, rows) for index, name, rows in self.uses]
        self.uses += [(index, "out", rows) for index, rows in enumerate(moves, last + 1)]
        self.matrices = [(moved(index), matrix) for index, matrix in self.matrices]
        self.vectors = [(moved(index), name, vector) for index, name, vector in self.vectors]

    def linear(self, module: nn.Module, x: Buffer, out: Buffer | None) -> None:
        """out = module(x); None is the logits."""
        if isinstance(module, AdaptedLinear):
            assert out is not None
            self.linear(module.base, x, out)
            low_rank, update = Buffer("low_rank", len(module.down)), Buffer("update", out.width)
            self._product([self.library.dense(module.down.detach())], x, low_rank)
            self._product([self.library.dense(module.up.detach())], low_rank, update)
            self.sum(out, update)
            return
        parts = module.parts if isinstance(module, JoinedLinear) else [module]
        self._product([self.matrix(part) for part in parts], x, out, getattr(module, "bias", None))

    def _product(self, matrices: list[Matrix], x: Buffer, out: Buffer | None, bias: Tensor | None = None) -> None:
        self.add("LINEAR", matrices=matrices, input=x, out=out, bias=bias, rows=len(matrices))

    def matrix(self, module: nn.Module) -> Matrix:
        """A module's matrix."""
        match module:
            case CompiledLinear() | CompiledEmbedding():
                return module.matrix
            case Linear() | Embedding() if module.weight.dtype == torch.float32 and module.weight.is_contiguous():
                return self.library.dense(module.weight.detach())
        raise Unsupported(type(module).__name__)

    def norm(self, norm: nn.Module, x: Buffer, out: Buffer) -> Buffer:
        """out = norm(x). Returns the buffer with the result: x if there is no norm."""
        if isinstance(norm, nn.Identity):
            return x
        self.norms(norm, x, out, rows=1, size=x.width)
        return out

    def norms(
        self,
        norm: nn.Module,
        x: Buffer,
        out: Buffer,
        *,
        rows: int,
        size: int,
        weight_step: int = 0,
        weight: Tensor | None = None,
    ) -> None:
        """Normalizes `rows` vectors of `size`. weight: instead of the norm's own, if it has none."""
        assert isinstance(norm, Norm)
        handles(norm.config, "kind", "eps", "weight", "bias", "wide_scale")  # wide_scale: all is wide in fp32
        codes = {"rms": "RMS_NORM", "layer": "LAYER_NORM"}
        if norm.config.kind not in codes or (norm.config.kind == "rms" and norm.bias is not None):
            raise Unsupported("a norm")
        self.add(
            codes[norm.config.kind],
            input=x,
            out=out,
            weight=norm.weight if weight is None else weight,
            bias=norm.bias,
            rows=rows,
            size=size,
            stride=x.width,
            weight_step=weight_step,
            factor=norm.config.eps,
        )

    def activate(self, activation: int, x: Buffer, out: Buffer, *, rows: int = 1, gated: bool = False) -> None:
        """Activates `rows` vectors that fill a row of `out`. gated: each is followed by its factor."""
        size = out.width // rows
        self.add(
            "ACTIVATE", input=x, out=out, rows=rows, size=size, stride=2 * size if gated else size, table=activation
        )

    def multiply(self, out: Buffer, factor: Buffer, size: int, activation: int = IDENTITY) -> None:
        """Multiplies `size` numbers of `out` by an activation of others."""
        self.add(
            "MULTIPLY",
            input=factor,
            out=out,
            size=size,
            stride=factor.width,
            out_stride=out.width,
            table=activation,
        )

    def copy(self, x: Buffer, out: Buffer) -> None:
        """out = x."""
        self.add("ADD", input=x, out=out, size=x.width, factor=1.0, table=1)

    def sum(self, x: Buffer, addend: Buffer, scale: float = 1.0) -> None:
        """x += addend * scale."""
        self.add("ADD", input=addend, out=x, size=x.width, factor=scale)

    def scale(self, x: Buffer, factor: float, size: int | None = None) -> None:
        """Multiplies the first `size` numbers of x, or all."""
        if factor != 1:
            self.add("SCALE", out=x, size=size or x.width, stride=x.width, factor=factor)
