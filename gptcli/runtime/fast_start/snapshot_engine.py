"""Runs a snapshot of a decoder: with logits in main memory. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from gptcli.errors import NonFiniteLogits
from gptcli.kernels.bindings import Functions
from gptcli.kernels.memory import Memory
from gptcli.runtime.engine import MOST_ROWS, Cancelled, Progress, TokenScore, Workload, never_cancelled, no_progress
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.program import CHUNK, Text
from gptcli.runtime.program_cache import ProgramCache, ProgramRows
from gptcli.runtime.resource_limits import free_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SnapshotLogits:
    """One row of logits, valid until the next step."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self._memory, self._offset = memory, offset

    def data_ptr(self) -> int:
        """The address of (vocab,) values in fp32."""
        return self._memory.address + self._offset

    def values(self, count: int) -> NDArray[np.float32]:
        """The first ones as an array, (count,)."""
        import numpy as np

        return np.frombuffer(self._memory.view, np.float32, count, self._offset)


def _score(logits: NDArray[np.float32], id: int, top: int) -> TokenScore:
    import numpy as np

    total = np.log(np.exp(logits - logits.max()).sum(dtype=np.float64)) + logits.max()
    best = np.argpartition(-logits, top - 1)[:top] if 0 < top < len(logits) else np.arange(len(logits))[: top or 0]
    best = best[np.argsort(-logits[best], kind="stable")]
    return TokenScore(float(logits[id] - total), [(int(each), float(logits[each] - total)) for each in best])


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
        self._logits = Memory(4 * snapshot.vocab_size)

    def serves(self, workload: Workload) -> bool:
        """See `Engine.serves`."""
        tokens = self.ctx_size if workload.tokens is None else min(workload.tokens, self.ctx_size)
        return not workload.probabilities and tokens <= self._room

    def new_cache(self) -> ProgramCache:
        """See `Engine.new_cache`."""
        return ProgramCache(self._snapshot.program.layouts, self._room)

    def most_rows(self, tokens: int) -> int:
        """As many as fit into the memory; see `Engine.most_rows`."""
        position_bytes = sum(layout.position_bytes for layout in self._snapshot.program.layouts)
        return max(1, min(MOST_ROWS, free_memory() // (2 * min(tokens, self._room) * position_bytes)))

    def rows(self, cache: ProgramCache, count: int) -> ProgramRows[SnapshotLogits]:
        """See `Engine.rows`. Raises MemoryError."""
        return ProgramRows(self, [cache.copy() for _ in range(count)])

    def most_ahead(self, cache: ProgramCache) -> int:
        """See `Engine.most_ahead`."""
        return max(0, min(self._room - cache.length, CHUNK) - 1)

    def prefill(
        self,
        tokens: Sequence[int],
        cache: ProgramCache,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> SnapshotLogits | None:
        """See `Engine.prefill`. Raises NonFiniteLogits and MemoryError."""
        logits = None
        for start in range(0, len(tokens), CHUNK):
            if cancelled():
                return None
            chunk = tokens[start : start + CHUNK]
            [logits] = self._run([(cache, chunk)], wanted=1)
            on_progress(start + len(chunk), len(tokens))
        return logits

    def step(self, tokens: Sequence[int], cache: ProgramCache) -> list[SnapshotLogits]:
        """See `Engine.step`. Raises as `prefill` does."""
        return self._run([(cache, tokens)], wanted=len(tokens))

    def score_tokens(
        self, tokens: Sequence[int], cache: ProgramCache, targets: Sequence[int], vocabulary: int, top: int
    ) -> Iterator[list[TokenScore]]:
        """See `Engine.score_tokens`."""
        before = len(tokens) - len(targets)  # tokens that nothing is scored after
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            asked = targets[max(0, start - before) : max(0, start - before + len(chunk))]
            rows = self._run([(cache, chunk)], wanted=max(1, len(asked)))
            if asked:
                yield [_score(row.values(vocabulary), id, top) for row, id in zip(rows, asked, strict=True)]

    def decode_texts(self, texts: Sequence[tuple[ProgramCache, int]]) -> list[SnapshotLogits]:
        """Appends one token to each of several texts; the logits after each. Raises as `prefill` does."""
        return self._run([(cache, [token]) for cache, token in texts], wanted=1)

    def _run(self, texts: Sequence[tuple[ProgramCache, Sequence[int]]], wanted: int) -> list[SnapshotLogits]:
        """Appends tokens to each of several texts; the logits of each one's last tokens."""
        snapshot, row = self._snapshot, 4 * self._snapshot.vocab_size
        for cache, tokens in texts:
            assert cache.length + len(tokens) <= self._room
            assert 0 <= min(tokens) <= max(tokens) < snapshot.vocab_size
        count = wanted * len(texts)
        if self._logits.size < count * row:
            self._logits = Memory(count * row)
        parts = [
            Text(tokens, cache.length, [table.at(cache.length) for table in snapshot.tables], cache.rows(len(tokens)))
            for cache, tokens in texts
        ]
        ends = accumulate(len(tokens) for _, tokens in texts)
        asked = [index for end in ends for index in range(end - wanted, end)]
        snapshot.program.run(parts, asked, self._logits.address)
        for cache, tokens in texts:
            cache.tokens += tokens
        if not self.library.all_finite(self._logits.address, count * snapshot.vocab_size):
            self._drop()
            raise NonFiniteLogits(max(cache.length for cache, _ in texts), self.dtype_name)
        return [SnapshotLogits(self._logits, index * row) for index in range(count)]
