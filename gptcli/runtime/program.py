"""A decoder's step: operations that the compiled kernels run in one call, for one token or many. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.kernels.bindings import Frame, Functions, Matrix, Op, Rotation
from gptcli.kernels.memory import Memory

CHUNK = 512  # prompt tokens in one forward pass: bounds memory, costs a tenth of the speed at 4,096


@dataclass(frozen=True)
class Rows:
    """A buffer's name, the width of a token's row in it, and where in that an operation begins; all in fp32."""

    name: str
    width: int
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """Where fp32 values are, their size in bytes, and what has to stay for them to be there."""

    address: int
    size: int
    owner: object


@dataclass(frozen=True)
class Storage:
    """Where a block's keys and values are, and how many elements lie between rows and between heads."""

    keys: int
    values: int
    row_stride: int
    head_stride: int


class Program:
    """Operations, the buffers between them, and the weights that they read.

    uses, matrices and vectors say what an operation, told by its place, has in a field: `uses` in "input" or "out",
    `vectors` in "weight" or "bias". Each block's attention is one operation, in the blocks' order.
    """

    def __init__(
        self,
        library: Functions,
        ops: Sequence[Op],
        uses: Sequence[tuple[int, str, Rows]],
        matrices: Sequence[tuple[int, Matrix]],
        vectors: Sequence[tuple[int, str, Vector]],
    ) -> None:
        self.uses, self.matrices, self.vectors = uses, matrices, vectors
        self.ops = (Op * len(ops))(*ops)
        for place, matrix in matrices:
            self.ops[place].matrix = matrix.handle
        for place, name, vector in vectors:
            setattr(self.ops[place], name, vector.address)
        self._library = library
        self.attends = [op for op in self.ops if op.code == library.code("ATTEND")]
        self._buffers: list[Memory] = []
        self._room = 0  # tokens that the buffers hold

    def bind(self, caches: Sequence[Storage]) -> None:
        """Says where each block's keys and values are, and will be until the next time."""
        for op, cache in zip(self.attends, caches, strict=True):
            op.keys, op.values = cache.keys, cache.values
            op.row_stride, op.head_stride = cache.row_stride, cache.head_stride

    def run(
        self,
        tokens: Sequence[int],
        *,
        texts: int,
        position: int,
        held: Sequence[int],
        rotations: Sequence[Rotation],
        wanted: int,
        logits: int,
    ) -> None:
        """Runs tokens of one text, or one of each of several `texts`, the first of them at `position`.

        held: positions that each kind of cache holds before. rotations: of these positions, for each kind of rope.
        The logits of the `wanted` last tokens go to the address `logits`, (wanted, vocab) in fp32. Raises MemoryError.
        """
        if len(tokens) > self._room:
            self._make_room(len(tokens))
        ids = (ctypes.c_int64 * len(tokens))(*tokens)
        holds = (ctypes.c_int64 * len(held))(*held)
        tables = (Rotation * max(1, len(rotations)))(*rotations)
        address = ctypes.addressof
        frame = Frame(len(tokens), texts, position, wanted, address(ids), address(tables), address(holds), logits)
        self._library.run(self.ops, frame)

    def _make_room(self, tokens: int) -> None:
        widths: dict[str, int] = {}
        for _, _, rows in self.uses:
            widths[rows.name] = max(rows.width, widths.get(rows.name, 0))
        buffers = {name: Memory(4 * tokens * width) for name, width in widths.items()}
        for place, name, rows in self.uses:
            setattr(self.ops[place], name, buffers[rows.name].address + 4 * rows.offset)
        self._buffers = list(buffers.values())
        self._room = tokens
