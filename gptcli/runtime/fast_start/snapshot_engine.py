"""Runs a snapshot of a decoder: one text at a time, with logits in main memory. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NoReturn

from gptcli.errors import NonFiniteLogits
from gptcli.kernels.bindings import Functions
from gptcli.kernels.memory import Memory
from gptcli.runtime.engine import Cancelled, Progress, Workload, never_cancelled, no_progress
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.program import CHUNK, Storage


class SnapshotCache:
    """Keys and values of one text of up to `room` tokens; `tokens` are the cached ids. Raises MemoryError."""

    def __init__(self, snapshot: Snapshot, room: int) -> None:
        self.tokens: list[int] = []
        shapes = [(op.kv_heads, op.size) for op in snapshot.program.attends]
        self._memory = Memory(sum(2 * 4 * heads * room * dim for heads, dim in shapes))
        self.storages = []
        address = self._memory.address
        for heads, dim in shapes:
            size = 4 * heads * room * dim
            self.storages.append(Storage(address, address + size, 0, room * dim))
            address += 2 * size

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


class SnapshotLogits:
    """One row of logits, valid until the next step."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self._memory, self._offset = memory, offset

    def data_ptr(self) -> int:
        """The address of (vocab,) values in fp32."""
        return self._memory.address + self._offset


class SnapshotEngine:
    """An `Engine` for one text of up to `room` tokens, whose logits are addresses. Raises MemoryError.

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
        snapshot.program.bind(self._cache.storages)

    def serves(self, workload: Workload) -> bool:
        """See `Engine.serves`."""
        tokens = self.ctx_size if workload.tokens is None else min(workload.tokens, self.ctx_size)
        return workload.plain and tokens <= self._room

    def new_cache(self) -> SnapshotCache:
        """Its only cache, emptied."""
        self._cache.truncate(0)
        return self._cache

    def most_rows(self, tokens: int) -> int:
        """One: texts do not share steps here."""
        return 1

    def rows(self, cache: SnapshotCache, count: int) -> NoReturn:
        """Is never asked for: see `serves`."""
        raise AssertionError("a snapshot runs one text")

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

    def _run(self, tokens: Sequence[int], cache: SnapshotCache, wanted: int) -> list[SnapshotLogits]:
        snapshot, position = self._snapshot, cache.length
        assert position + len(tokens) <= self._room
        assert 0 <= min(tokens) <= max(tokens) < snapshot.vocab_size
        row = 4 * snapshot.vocab_size
        if self._logits.size < wanted * row:
            self._logits = Memory(wanted * row)
        snapshot.program.run(
            tokens,
            texts=1,
            position=position,
            cached=[position] * snapshot.cache_kinds,
            rotations=[table.at(position) for table in snapshot.tables],
            wanted=wanted,
            logits=self._logits.address,
        )
        cache.tokens += tokens
        if not self.library.all_finite(self._logits.address, wanted * snapshot.vocab_size):
            self._drop()
            raise NonFiniteLogits(cache.length, self.dtype_name)
        return [SnapshotLogits(self._logits, index * row) for index in range(wanted)]
