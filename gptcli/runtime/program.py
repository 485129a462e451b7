"""A decoder's step as a list of operations, which the compiled kernels run in one call. No torch."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.kernels.bindings import Frame, Functions, Matrix, Op, Rotation
from gptcli.kernels.memory import Memory

CHUNK = 512  # prompt tokens per forward pass: bounds memory, costs a tenth of the speed at 4,096


@dataclass(frozen=True)
class Buffer:
    """A buffer by its name, the width of a token's row in it, and where in the row an operation begins; in fp32."""

    name: str
    width: int
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """The address of fp32 values, their size in bytes, and the owner of their memory."""

    address: int
    size: int
    owner: object


@dataclass(frozen=True)
class Storage:
    """The addresses of a block's keys and values, and the elements from row to row and from head to head."""

    keys: int
    values: int
    row_stride: int
    head_stride: int


class Program:
    """Operations, the buffers between them, and the weights that they read.

    uses, matrices and vectors begin with an operation's index and say what it has in a field: `uses` in "input", "out"
    or "choices", `vectors` in "weight" or "bias". An operation's matrices are in their order, by expert if there are
    several. Each block has one ATTEND operation, in the blocks' order.
    """

    def __init__(
        self,
        library: Functions,
        ops: Sequence[Op],
        uses: Sequence[tuple[int, str, Buffer]],
        matrices: Sequence[tuple[int, Matrix]],
        vectors: Sequence[tuple[int, str, Vector]],
    ) -> None:
        self.uses, self.matrices, self.vectors = uses, matrices, vectors
        self.ops = (Op * len(ops))(*ops)
        handles = defaultdict[int, list[int]](list)
        for index, matrix in matrices:
            handles[index].append(matrix.handle)
        self._handles = {index: (ctypes.c_void_p * len(each))(*each) for index, each in handles.items()}
        for index, array in self._handles.items():
            self.ops[index].matrices = ctypes.addressof(array)
        for index, name, vector in vectors:
            setattr(self.ops[index], name, vector.address)
        self._library = library
        self.attends = [op for op in self.ops if op.code == library.code("ATTEND")]
        self._buffers: list[Memory] = []
        self._room = 0  # tokens that fit in the buffers

    def bind(self, caches: Sequence[Storage]) -> None:
        """Sets the addresses of each block's keys and values, until the next call."""
        for op, cache in zip(self.attends, caches, strict=True):
            op.keys, op.values = cache.keys, cache.values
            op.row_stride, op.head_stride = cache.row_stride, cache.head_stride

    def run(
        self,
        tokens: Sequence[int],
        *,
        texts: int,
        position: int,
        cached: Sequence[int],
        rotations: Sequence[Rotation],
        wanted: int,
        logits: int,
    ) -> None:
        """Runs tokens of one text, or one token of each of several `texts`, from `position` on.

        cached: how many positions each kind of cache has before. rotations: of these positions, for each kind of rope.
        The logits of the last `wanted` tokens go to the address `logits`, (wanted, vocab) in fp32. Raises MemoryError.
        """
        if len(tokens) > self._room:
            self._make_room(len(tokens))
        ids = (ctypes.c_int64 * len(tokens))(*tokens)
        counts = (ctypes.c_int64 * len(cached))(*cached)
        tables = (Rotation * max(1, len(rotations)))(*rotations)
        address = ctypes.addressof
        frame = Frame(len(tokens), texts, position, wanted, address(ids), address(tables), address(counts), logits)
        self._library.run(self.ops, frame)

    def _make_room(self, tokens: int) -> None:
        widths: dict[str, int] = {}
        for _, _, rows in self.uses:
            widths[rows.name] = max(rows.width, widths.get(rows.name, 0))
        buffers = {name: Memory(4 * tokens * width) for name, width in widths.items()}
        for index, name, rows in self.uses:
            setattr(self.ops[index], name, buffers[rows.name].address + 4 * rows.offset)
        self._buffers = list(buffers.values())
        self._room = tokens
