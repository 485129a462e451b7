"""Runs a snapshot of a decoder, with logits in main memory. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gptcli.errors import NonFiniteLogits
from gptcli.kernels.bindings import Functions
from gptcli.kernels.memory import Memory
from gptcli.runtime.chunked_engine import ChunkedEngine, longest
from gptcli.runtime.engine import MOST_ROWS, Cache, Cancelled, Extension, TokenScore, Workload, never_cancelled
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.memory_errors import memory_errors
from gptcli.runtime.program import MANY_LOGITS, Scored
from gptcli.runtime.program_cache import ProgramCache
from gptcli.runtime.resource_limits import free_memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SnapshotLogits:
    """One row of logits, in memory that this keeps alive."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self._memory, self._offset = memory, offset

    def data_ptr(self) -> int:
        """The address of (vocab,) values in fp32."""
        return self._memory.address + self._offset

    def values(self, count: int) -> NDArray[np.float32]:
        """The first ones as an array, (count,)."""
        import numpy as np

        return np.frombuffer(self._memory.view, np.float32, count, self._offset)


def _score(logits: NDArray[np.float32], total: float, id: int, top: int) -> TokenScore:
    """total: the logarithm of the sum of e^logit."""
    if not top:
        return TokenScore(float(logits[id] - total), ())
    import numpy as np

    best = np.argpartition(-logits, top - 1)[:top] if top < len(logits) else np.arange(len(logits))
    best = best[np.argsort(-logits[best], kind="stable")]
    return TokenScore(float(logits[id] - total), [(int(each), float(logits[each] - total)) for each in best])


class SnapshotEngine(ChunkedEngine[list[SnapshotLogits]]):
    """An `Engine` for texts of up to `room` tokens, whose logits are addresses. Raises MemoryError.

    drop: called when logits are not finite, so that the next run does not start from this snapshot.
    """

    failures: tuple[str, ...] = ()
    _sums_up = True

    def __init__(
        self, snapshot: Snapshot, library: Functions, ctx_size: int, room: int, drop: Callable[[], None]
    ) -> None:
        super().__init__()
        self.ctx_size = ctx_size
        self.load_s = 0.0
        self.dtype_name, self.device_name = snapshot.dtype, "cpu"
        self.library = library
        self._longest, self._keeps_states = room, snapshot.program.state_bytes > 0
        self._snapshot, self._drop = snapshot, drop

    @property
    def _room(self) -> int:
        return self._longest

    def serves(self, workload: Workload) -> bool:
        """See `Engine.serves`."""
        tokens = self.ctx_size if workload.tokens is None else min(workload.tokens, self.ctx_size)
        return not workload.probabilities and tokens <= self._room

    def new_cache(self) -> ProgramCache:
        """See `Engine.new_cache`."""
        program = self._snapshot.program
        return ProgramCache(program.layouts, self._room, program.state_bytes)

    def new_rows(self) -> None:
        """See `Engine.new_rows`."""

    def most_rows(self, tokens: int) -> int:
        """As many as fit into the memory; see `Engine.most_rows`."""
        program = self._snapshot.program
        position_bytes = sum(layout.position_bytes for layout in program.layouts)
        row_bytes = 2 * min(tokens, self._room) * position_bytes + program.most_state_bytes
        return max(1, min(MOST_ROWS, free_memory() // row_bytes))

    def copy_of(self, cache: Cache, length: int) -> ProgramCache:
        """See `Engine.copy_of`."""
        assert isinstance(cache, ProgramCache)
        with memory_errors(self.device_name, f"copying {length} tokens"):
            return cache.copy(length)

    def _non_finite(self, length: int) -> NonFiniteLogits:
        self._drop()
        return super()._non_finite(length)

    def _all_finite(self, logits: list[SnapshotLogits]) -> bool:
        return self.library.all_finite(logits[0].data_ptr(), len(logits) * self._snapshot.vocab_size)

    def _scores(
        self, logits: list[SnapshotLogits], targets: Sequence[int], vocabulary: int, top: int
    ) -> list[TokenScore]:
        sums = self.library.log_sums(logits[0].data_ptr(), len(logits), vocabulary, self._snapshot.vocab_size)
        return [
            _score(row.values(vocabulary), total, id, top) for row, total, id in zip(logits, sums, targets, strict=True)
        ]

    def _log_probabilities(
        self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int
    ) -> list[float] | None:
        scored = Scored(targets, vocabulary)
        with memory_errors(self.device_name, f"running token {longest(texts)}"), self._step:
            self._run_program(texts, 0, scored=scored)
        return scored.logprobs

    def _run_texts(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> list[SnapshotLogits]:
        row, wanted = 4 * self._snapshot.vocab_size, sum(text.wanted for text in texts)
        with memory_errors(self.device_name, f"running token {longest(texts)}"), self._step:
            logits = Memory(wanted * row, huge_pages=wanted >= MANY_LOGITS)
            self._run_program(texts, logits.address, cancelled)
        return [SnapshotLogits(logits, index * row) for index in range(wanted)]

    def _run_program(
        self,
        texts: Sequence[Extension],
        logits: int,
        cancelled: Cancelled = never_cancelled,
        scored: Scored | None = None,
    ) -> None:
        """See `Program.run`."""
        snapshot = self._snapshot
        for cache, tokens, _ in texts:
            assert cache.length + len(tokens) <= self._room
            assert 0 <= min(tokens) <= max(tokens) < snapshot.vocab_size
        rotations = [[table.at(text.cache.length) for table in snapshot.tables] for text in texts]
        snapshot.program.run(texts, rotations, logits, cancelled, scored)
