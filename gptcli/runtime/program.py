"""A decoder's step as a list of operations, which the compiled kernels run in one call. No torch."""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Sequence
from ctypes import c_double, c_int64
from dataclasses import dataclass
from itertools import accumulate, chain

from gptcli.kernels.bindings import CACHE_KINDS, CacheKind, Frame, Functions, Matrix, Op, Rotation, Row, State
from gptcli.kernels.memory import Memory
from gptcli.model.cache.state_history import MOST_EARLIER_STATES
from gptcli.runtime.engine import Cancelled, Extension, StepCancelled, caches_of, never_cancelled
from gptcli.runtime.program_cache import Layout, ProgramCache, planes

CHUNK = 512  # prompt tokens per forward pass: bounds memory, costs a tenth of the speed at 4,096

MANY_LOGITS = 64  # rows for which mapping small pages takes longer than computing a layer


@dataclass(frozen=True)
class Buffer:
    """An fp32 buffer's name, the width of a token's row in it, and the offset in the row where an operation begins."""

    name: str
    width: int
    offset: int = 0

    def at(self, offset: int) -> Buffer:
        """The same buffer, `offset` numbers further on."""
        return Buffer(self.name, self.width, self.offset + offset)


@dataclass(frozen=True)
class Vector:
    """The address of fp32 values, their size in bytes, and the owner of their memory."""

    address: int
    size: int
    owner: object


class Scored:
    """Targets of the wanted tokens and their log-probabilities among `vocabulary` ids, which a step computes."""

    def __init__(self, targets: Sequence[int], vocabulary: int) -> None:
        assert 0 <= min(targets) <= max(targets) < vocabulary
        self._targets = (c_int64 * len(targets))(*targets)
        self._vocabulary = vocabulary
        self._logprobs = (c_double * len(targets))()

    @property
    def fields(self) -> tuple[int, int, int]:
        """Those of kernels.h's Frame."""
        return ctypes.addressof(self._targets), self._vocabulary, ctypes.addressof(self._logprobs)

    @property
    def logprobs(self) -> list[float] | None:
        """In nats; None if a logit was not finite."""
        found = list(self._logprobs)
        return found if all(map(math.isfinite, found)) else None


def chunks(tokens: Sequence[int], border: int = 0, most: int | None = None) -> list[Sequence[int]]:
    """Tokens in pieces of at most `most`, by default CHUNK; one piece ends at `border`."""
    if border > 0:
        return chunks(tokens[:border], most=most) + chunks(tokens[border:], most=most)
    most = most or CHUNK
    return [tokens[start : start + most] for start in range(0, len(tokens), most)]


class Program:
    """Operations, the buffers between them, and the weights that they read.

    uses, matrices and vectors begin with an operation's index. Uses are buffers in its field "input", "out", "choices",
    "keys", "queries" or "steps"; vectors are in "weight" or "bias". An operation's matrices are in order, by expert or
    by head if there are several. cache_kind: the format of texts' keys and values.
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
        self.state_bytes = self._lay_out_states()
        self._buffers: list[Memory] = []
        self._room = 0  # tokens that fit in the buffers

    def _lay_out(self, kind: CacheKind) -> list[Layout]:
        """Sets each block's offset of keys and values in a cache; returns the layouts, by number of their window."""
        layouts: dict[int, Layout] = {}
        latent = {index for index, name, _ in self.uses if name == "keys"}  # whose values are the keys
        for index, op in enumerate(self.ops):
            if op.code not in (self._library.code("ATTEND"), self._library.code("EXPAND")):
                continue
            op.cache_kind = CACHE_KINDS.index(kind)
            if op.borrows:
                op.keys_at = self.ops[op.borrows - 1].keys_at
                continue
            layout = layouts.setdefault(op.table, Layout(op.window or None, []))
            op.keys_at = layout.position_bytes
            layout.planes += planes(kind, op.size) * ((1 if index in latent else 2) * op.kv_heads)
        return [layouts[window] for window in sorted(layouts)]

    @property
    def bytes_a_token(self) -> int:
        """Bytes of weights that one token is multiplied with; in a mixture, those of the chosen experts only."""
        sizes: dict[int, float] = {}  # by address: some are multiplied with twice
        for index, matrix in self.matrices:
            op = self.ops[index]
            if op.code not in (self._library.code("EMBED"), self._library.code("EXPAND")):
                share = op.rows / op.size if op.code == self._library.code("EXPERTS") else 1
                sizes[matrix.address] = matrix.size * share
        return int(sum(sizes.values()))

    @property
    def most_state_bytes(self) -> int:
        """The most bytes that a text's states take: before and after a step, and marked ones."""
        return (2 + MOST_EARLIER_STATES) * self.state_bytes

    def _lay_out_states(self) -> int:
        """Sets each operation's offset of its state in a text's states; returns their size in bytes."""
        size = 0
        for op in self.ops:
            op.state_at = size
            if op.code == self._library.code("CONVOLVE"):
                size += 4 * (op.rows - 1) * op.size
            elif op.code == self._library.code("RECUR"):
                size += 4 * op.heads * op.rows * op.size
        return size

    def run(
        self,
        texts: Sequence[Extension],
        rotations: Sequence[Sequence[Rotation]],
        logits: int,
        cancelled: Cancelled = never_cancelled,
        scored: Scored | None = None,
    ) -> None:
        """Appends tokens to each of several texts, and counts them as cached.

        rotations: for each text and rope, those of its next tokens. logits: the address for the wanted ones,
        (sum of wanted, vocab) in fp32. scored: filled instead of logits. Raises MemoryError, and StepCancelled once
        cancelled.
        """
        caches = caches_of(texts, ProgramCache)
        starts = list(accumulate((len(text.tokens) for text in texts), initial=0))
        wanted = [index for end, text in zip(starts[1:], texts, strict=True) for index in range(end - text.wanted, end)]
        assert 0 <= wanted[0] <= wanted[-1] < starts[-1]
        if starts[-1] > self._room:
            self._make_room(starts[-1])
        ids = (c_int64 * starts[-1])(*(token for text in texts for token in text.tokens))
        begins = (c_int64 * len(starts))(*starts)
        positions = (c_int64 * len(texts))(*(cache.length for cache in caches))
        ropes, windows = len(rotations[0]), len(self.layouts)
        tables = (Rotation * max(1, len(texts) * ropes))(*chain(*rotations))
        own = (cache.rows(len(text.tokens)) for cache, text in zip(caches, texts, strict=True))
        rows = (Row * (len(texts) * windows))(*chain.from_iterable(own))
        states = (State * len(texts))(*(cache.state() for cache in caches))
        asked = (c_int64 * len(wanted))(*wanted)
        addresses = [ctypes.addressof(array) for array in (ids, begins, positions, tables, rows, states, asked)]
        scores = scored.fields if scored is not None else (None, 0, None)
        frame = Frame(starts[-1], len(texts), ropes, windows, len(wanted), *addresses, logits, *scores)
        if not self._library.run(self.ops, frame, cancelled):
            raise StepCancelled
        for cache, text in zip(caches, texts, strict=True):
            cache.advance(text.tokens)

    def _make_room(self, tokens: int) -> None:
        widths: dict[str, int] = {}
        for _, _, rows in self.uses:
            widths[rows.name] = max(rows.width, widths.get(rows.name, 0))
        buffers = {name: Memory(4 * tokens * width) for name, width in widths.items()}
        for index, name, rows in self.uses:
            setattr(self.ops[index], name, buffers[rows.name].address + 4 * rows.offset)
        self._buffers = list(buffers.values())
        self._room = tokens
