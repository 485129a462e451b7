"""Runs a snapshot of a decoder: with logits in main memory. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import takewhile

from gptcli.errors import NonFiniteLogits
from gptcli.kernels.bindings import Functions
from gptcli.kernels.memory import Memory
from gptcli.runtime.engine import MOST_ROWS, Cancelled, Progress, Workload, never_cancelled, no_progress
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.machine import free_memory
from gptcli.runtime.program import CHUNK, Storage


class SnapshotCache:
    """Keys and values of one text of up to `room` tokens, or of several that are equally long. Raises MemoryError.

    tokens: the cached ids of the first. rows: how many texts there is memory for.
    """

    def __init__(self, snapshot: Snapshot, room: int, rows: int = 1) -> None:
        self.tokens: list[int] = []
        shapes = [(op.kv_heads, op.size) for op in snapshot.program.attends]
        self._row_bytes = cache_bytes(snapshot, room)
        self._memory = Memory(rows * self._row_bytes)
        self.storages = []
        address = self._memory.address
        for heads, dim in shapes:
            size = 4 * heads * room * dim
            self.storages.append(Storage(address, address + size, self._row_bytes // 4, room * dim))
            address += 2 * size

    def copy_row(self, row: int, source: SnapshotCache, source_row: int = 0) -> None:
        """Makes a row the same as one of another cache with the same room, or of this one."""
        to, origin = (cache._memory.address + at * self._row_bytes for cache, at in ((self, row), (source, source_row)))
        ctypes.memmove(to, origin, self._row_bytes)

    @property
    def length(self) -> int:
        """See `Cache.length`."""
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        """See `Cache.truncate`."""
        del self.tokens[length:]

    def keep_common(self, prompt: Sequence[int]) -> None:
        """See `Cache.keep_common`."""
        pairs = zip(self.tokens, prompt, strict=False)
        self.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))


def cache_bytes(snapshot: Snapshot, room: int) -> int:
    """Of the keys and values of a text of up to `room` tokens."""
    return sum(2 * 4 * op.kv_heads * room * op.size for op in snapshot.program.attends)


class SnapshotLogits:
    """One row of logits, valid until the next step."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self._memory, self._offset = memory, offset

    def data_ptr(self) -> int:
        """The address of (vocab,) values in fp32."""
        return self._memory.address + self._offset


class SnapshotEngine:
    """An `Engine` for texts of up to `room` tokens, whose logits are addresses. Raises MemoryError.

    drop: is called where logits are not finite, lest the next run starts from this snapshot.
    """

    failures: tuple[str, ...] = ()

    def __init__(
        self, snapshot: Snapshot, library: Functions, ctx_size: int, room: int, drop: Callable[[], None]
    ) -> None:
        self.ctx_size = ctx_size
        self.load_s = 0.0
        self.dtype_name, self.device_name = snapshot.dtype, "cpu"
        self.library = library
        self._room, self._drop = room, drop
        self._snapshot = snapshot
        self._cache = SnapshotCache(snapshot, room)
        self._logits = Memory(4 * snapshot.vocab_size)
        self._bound: SnapshotCache | None = None

    def serves(self, workload: Workload) -> bool:
        """See `Engine.serves`."""
        tokens = self.ctx_size if workload.tokens is None else min(workload.tokens, self.ctx_size)
        return not workload.probabilities and tokens <= self._room

    def new_cache(self) -> SnapshotCache:
        """Its only cache, emptied."""
        self._cache.truncate(0)
        return self._cache

    def most_rows(self, tokens: int) -> int:
        """As many as fit into the memory; see `Engine.most_rows`."""
        return max(1, min(MOST_ROWS, free_memory() // (2 * cache_bytes(self._snapshot, self._room))))

    def rows(self, cache: SnapshotCache, count: int) -> SnapshotRows:
        """See `Engine.rows`. Raises MemoryError."""
        shared = SnapshotCache(self._snapshot, self._room, count)
        for row in range(count):
            shared.copy_row(row, cache)
        shared.tokens = list(cache.tokens)
        return SnapshotRows(self, shared, count)

    def most_ahead(self, cache: SnapshotCache) -> int:
        """See `Engine.most_ahead`."""
        return max(0, self._room - cache.length - 1)

    def prefill(
        self,
        tokens: Sequence[int],
        cache: SnapshotCache,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> SnapshotLogits | None:
        """See `Engine.prefill`. Raises NonFiniteLogits and MemoryError."""
        logits = None
        for start in range(0, len(tokens), CHUNK):
            if cancelled():
                return None
            chunk = tokens[start : start + CHUNK]
            [logits] = self._run(chunk, cache, wanted=1)
            on_progress(start + len(chunk), len(tokens))
        return logits

    def step(self, tokens: Sequence[int], cache: SnapshotCache) -> list[SnapshotLogits]:
        """See `Engine.step`. Raises as `prefill` does."""
        return self._run(tokens, cache, wanted=len(tokens))

    def step_rows(self, tokens: Sequence[int], cache: SnapshotCache) -> list[SnapshotLogits]:
        """Appends one token to each row of a cache; the logits after each. Raises as `prefill` does."""
        return self._run(tokens, cache, wanted=len(tokens), texts=len(tokens))

    def _run(self, tokens: Sequence[int], cache: SnapshotCache, wanted: int, texts: int = 1) -> list[SnapshotLogits]:
        snapshot, position, new = self._snapshot, cache.length, len(tokens) // texts
        assert position + new <= self._room
        assert 0 <= min(tokens) <= max(tokens) < snapshot.vocab_size
        if self._bound is not cache:
            snapshot.program.bind(cache.storages)
            self._bound = cache
        row = 4 * snapshot.vocab_size
        if self._logits.size < wanted * row:
            self._logits = Memory(wanted * row)
        snapshot.program.run(
            tokens,
            texts=texts,
            position=position,
            cached=[position] * snapshot.cache_kinds,
            rotations=[table.at(position) for table in snapshot.tables],
            wanted=wanted,
            logits=self._logits.address,
        )
        cache.tokens += tokens[:new]
        if not self.library.all_finite(self._logits.address, wanted * snapshot.vocab_size):
            self._drop()
            raise NonFiniteLogits(cache.length, self.dtype_name)
        return [SnapshotLogits(self._logits, index * row) for index in range(wanted)]


class SnapshotRows:
    """Texts of one length that share steps; see `Rows`."""

    def __init__(self, engine: SnapshotEngine, cache: SnapshotCache, count: int) -> None:
        self._engine, self._cache, self._count = engine, cache, count

    def step(self, tokens: Sequence[int]) -> Sequence[SnapshotLogits]:
        """See `Rows.step`."""
        return self._engine.step_rows(tokens, self._cache)

    def replace(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[SnapshotLogits] | None:
        """See `Rows.replace`."""
        for row, text in enumerate(texts):
            own = self._engine.new_cache()
            if len(text) > 1 and self._engine.prefill(text[:-1], own, cancelled=cancelled) is None:
                return None
            self._cache.copy_row(row, own)
        self._cache.tokens = list(texts[0][:-1])
        return self.step([text[-1] for text in texts])

    def drop(self, row: int) -> None:
        """See `Rows.drop`."""
        self._count -= 1
        if row != self._count:
            self._cache.copy_row(row, self._cache, self._count)
