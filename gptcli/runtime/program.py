"""A decoder's step as a list of operations, which the compiled kernels run in one call. No torch."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Sequence
from ctypes import c_int64
from dataclasses import dataclass
from itertools import accumulate

from gptcli.kernels.bindings import CACHE_KINDS, CacheKind, Frame, Functions, Matrix, Op, Rotation, Row
from gptcli.kernels.memory import Memory
from gptcli.runtime.engine import Cancelled, StepCancelled, never_cancelled
from gptcli.runtime.program_cache import Layout, planes

CHUNK = 512  # prompt tokens per forward pass: bounds memory, costs a tenth of the speed at 4,096

MANY_LOGITS = 64  # rows for which getting small pages takes longer than computing a layer


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
class Text:
    """Tokens that a step appends to a text, which has `position` tokens already.

    rotations: of these tokens, for each kind of rope. rows: its cache, see `ProgramCache.rows`.
    """

    tokens: Sequence[int]
    position: int
    rotations: Sequence[Rotation]
    rows: Sequence[Row]


class Program:
    """Operations, the buffers between them, and the weights that they read.

    uses, matrices and vectors begin with an operation's index and say what it has in a field: `uses` in "input", "out"
    or "choices", `vectors` in "weight" or "bias". An operation's matrices are in their order, by expert if there are
    several. cache_kind: how texts' keys and values are stored.
    """

    def __init__(
        self,
        library: Functions,
        ops: Sequence[Op],
        uses: Sequence[tuple[int, str, Buffer]],
        matrices: Sequence[tuple[int, Matrix]],
        vectors: Sequence[tuple[int, str, Vector]],
        cache_kind: CacheKind,
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
        self.layouts = self._lay_out(cache_kind)
        self._buffers: list[Memory] = []
        self._room = 0  # tokens that fit in the buffers

    def _lay_out(self, kind: CacheKind) -> list[Layout]:
        """Tells each block where its keys and values are in a cache; the layouts, by the number of their window."""
        layouts: dict[int, Layout] = {}
        for op in self.ops:
            if op.code == self._library.code("ATTEND"):
                layout = layouts.setdefault(op.table, Layout(op.window or None, []))
                op.cache_kind, op.keys_at = CACHE_KINDS.index(kind), layout.position_bytes
                layout.planes += planes(kind, op.size) * (2 * op.kv_heads)
        return [layouts[window] for window in sorted(layouts)]

    def run(
        self,
        texts: Sequence[Text],
        wanted: Sequence[int],
        logits: int,
        cancelled: Cancelled = never_cancelled,
    ) -> None:
        """Runs tokens of each of several texts, for which their caches have room.

        wanted: the indices of tokens, counted over all texts, in ascending order; the logits after these go to the
        address `logits`, (len(wanted), vocab) in fp32. Raises MemoryError, and StepCancelled once cancelled.
        """
        starts = list(accumulate((len(text.tokens) for text in texts), initial=0))
        assert 0 <= wanted[0] <= wanted[-1] < starts[-1]
        if starts[-1] > self._room:
            self._make_room(starts[-1])
        ids = (c_int64 * starts[-1])(*(token for text in texts for token in text.tokens))
        begins = (c_int64 * len(starts))(*starts)
        positions = (c_int64 * len(texts))(*(text.position for text in texts))
        ropes, windows = len(texts[0].rotations), len(self.layouts)
        tables = (Rotation * max(1, len(texts) * ropes))(*(table for text in texts for table in text.rotations))
        rows = (Row * (len(texts) * windows))(*(row for text in texts for row in text.rows))
        asked = (c_int64 * len(wanted))(*wanted)
        addresses = [ctypes.addressof(array) for array in (ids, begins, positions, tables, rows, asked)]
        frame = Frame(starts[-1], len(texts), ropes, windows, len(wanted), *addresses, logits)
        if not self._library.run(self.ops, frame, cancelled):
            raise StepCancelled

    def _make_room(self, tokens: int) -> None:
        widths: dict[str, int] = {}
        for _, _, rows in self.uses:
            widths[rows.name] = max(rows.width, widths.get(rows.name, 0))
        buffers = {name: Memory(4 * tokens * width) for name, width in widths.items()}
        for index, name, rows in self.uses:
            setattr(self.ops[index], name, buffers[rows.name].address + 4 * rows.offset)
        self._buffers = list(buffers.values())
        self._room = tokens
