"""Runs a snapshot of a decoder, with logits in main memory. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError, NonFiniteLogits, OutOfMemory
from gptcli.kernels.bindings import Functions
from gptcli.kernels.memory import Memory
from gptcli.runtime.engine import (
    MOST_ROWS,
    Cancelled,
    Extended,
    Extension,
    Progress,
    StepCancelled,
    TokenScore,
    Workload,
    never_cancelled,
    no_progress,
)
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.program import CHUNK, MANY_LOGITS, Scored, chunks, sums_up
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


class SnapshotEngine:
    """An `Engine` for texts of up to `room` tokens, whose logits are addresses. Raises MemoryError.

    drop: called when logits are not finite, so that the next run does not start from this snapshot.
    """

    failures: tuple[str, ...] = ()
    records_rows = False

    def __init__(
        self, snapshot: Snapshot, library: Functions, ctx_size: int, room: int, drop: Callable[[], None]
    ) -> None:
        self.ctx_size = ctx_size
        self.load_s = 0.0
        self.dtype_name, self.device_name = snapshot.dtype, "cpu"
        self.library = library
        self._room, self._drop = room, drop
        self._snapshot = snapshot
        self._step = threading.Lock()  # the program has one set of buffers

    def serves(self, workload: Workload) -> bool:
        """See `Engine.serves`."""
        tokens = self.ctx_size if workload.tokens is None else min(workload.tokens, self.ctx_size)
        return not workload.probabilities and tokens <= self._room

    def new_cache(self) -> ProgramCache:
        """See `Engine.new_cache`."""
        program = self._snapshot.program
        return ProgramCache(program.layouts, self._room, program.state_bytes)

    def most_rows(self, tokens: int) -> int:
        """As many as fit into the memory; see `Engine.most_rows`."""
        program = self._snapshot.program
        position_bytes = sum(layout.position_bytes for layout in program.layouts)
        row_bytes = 2 * min(tokens, self._room) * position_bytes + program.most_state_bytes
        return max(1, min(MOST_ROWS, free_memory() // row_bytes))

    def most_ahead(self, cache: ProgramCache) -> int:
        """See `Engine.most_ahead`."""
        return 0 if self._keeps_states else max(0, min(self._room - cache.length, CHUNK) - 1)

    @property
    def _keeps_states(self) -> bool:
        return self._snapshot.program.state_bytes > 0

    def prefill(
        self,
        tokens: Sequence[int],
        cache: ProgramCache,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> SnapshotLogits | None:
        """See `Engine.prefill`. Raises NonFiniteLogits and MemoryError."""
        logits, done = None, 0
        before = len(tokens) - 1 if self._keeps_states else 0  # the same again needs its last token
        for chunk in chunks(tokens, before):
            if cancelled():
                return None
            try:
                [logits] = self._run(Extension(cache, chunk), cancelled)
            except StepCancelled:
                return None
            done += len(chunk)
            on_progress(done, len(tokens))
        return logits

    def step(self, tokens: Sequence[int], cache: ProgramCache) -> list[SnapshotLogits]:
        """See `Engine.step`. Raises as `prefill` does."""
        return self._run(Extension(cache, tokens, len(tokens)))

    def extend(self, texts: Sequence[Extension]) -> list[Extended]:
        """See `Engine.extend`."""
        try:
            logits = self._logits_of(texts)
        except MemoryError:
            longest = max(text.cache.length + len(text.tokens) for text in texts)
            return [OutOfMemory(f"out of memory on cpu while running token {longest}")] * len(texts)
        ends = list(accumulate(text.wanted for text in texts))
        own = [logits[end - text.wanted : end] for text, end in zip(texts, ends, strict=True)]
        return [self._failure(text, rows) or rows for text, rows in zip(texts, own, strict=True)]

    def copy_of(self, cache: ProgramCache, length: int) -> ProgramCache:
        """See `Engine.copy_of`."""
        try:
            return cache.copy(length)
        except MemoryError:
            raise OutOfMemory(f"out of memory on cpu while copying {length} tokens") from None

    def score_tokens(
        self, tokens: Sequence[int], cache: ProgramCache, targets: Sequence[int], vocabulary: int, top: int
    ) -> Iterator[list[TokenScore]]:
        """See `Engine.score_tokens`."""
        before = len(tokens) - len(targets)  # tokens that nothing is scored after
        start = 0
        for chunk in chunks(tokens, before if self._keeps_states else 0):
            asked = targets[max(0, start - before) : max(0, start - before + len(chunk))]
            start += len(chunk)
            if sums_up(len(asked), top):
                yield self._summed([Extension(cache, chunk, len(asked))], asked, vocabulary)
                continue
            rows = self._run(Extension(cache, chunk, max(1, len(asked))))
            if asked:
                yield self._scores(rows, asked, vocabulary, top)

    def score_texts(
        self, texts: Sequence[Extension], targets: Sequence[Sequence[int]], vocabulary: int, top: int
    ) -> list[list[TokenScore]]:
        """See `Engine.score_texts`."""
        if self._keeps_states:  # the same text with another end needs what is before that
            before, texts = zip(*(text.split() for text in texts), strict=True)
            self._run_texts([text for text in before if text.tokens])
            for text in texts:
                text.cache.mark()
        if sums_up(sum(text.wanted for text in texts), top):
            rest = iter(self._summed(texts, [target for own in targets for target in own], vocabulary))
            return [[next(rest) for _ in own] for own in targets]
        rows = self._run_texts(texts)
        return [self._scores(own, asked, vocabulary, top) for own, asked in zip(rows, targets, strict=True)]

    def _run_texts(self, texts: Sequence[Extension]) -> list[Sequence[SnapshotLogits]]:
        """`extend`, but raises a text's error."""
        rows = []
        for own in self.extend(texts) if texts else []:
            if isinstance(own, GptcliError):
                raise own
            rows.append(own)
        return rows

    def _summed(self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int) -> list[TokenScore]:
        """The scores of all texts' targets, for which no logits are kept."""
        scored = Scored(targets, vocabulary)
        length = max(text.cache.length + len(text.tokens) for text in texts)
        try:
            self._run_program(texts, 0, scored=scored)
        except MemoryError:
            raise OutOfMemory(f"out of memory on cpu while running token {length}") from None
        if scored.logprobs is None:
            self._drop()
            raise NonFiniteLogits(length, self.dtype_name)
        return [TokenScore(logprob, ()) for logprob in scored.logprobs]

    def _scores(
        self, rows: Sequence[SnapshotLogits], targets: Sequence[int], vocabulary: int, top: int
    ) -> list[TokenScore]:
        """The score of a target for each row; rows are contiguous."""
        sums = self.library.log_sums(rows[0].data_ptr(), len(rows), vocabulary, self._snapshot.vocab_size)
        return [
            _score(row.values(vocabulary), total, id, top) for row, total, id in zip(rows, sums, targets, strict=True)
        ]

    def _run(self, text: Extension, cancelled: Cancelled = never_cancelled) -> list[SnapshotLogits]:
        """The logits that one text wants."""
        logits = self._logits_of([text], cancelled)
        if (failure := self._failure(text, logits)) is not None:
            raise failure
        return logits

    def _failure(self, text: Extension, logits: Sequence[SnapshotLogits]) -> NonFiniteLogits | None:
        if self.library.all_finite(logits[0].data_ptr(), len(logits) * self._snapshot.vocab_size):
            return None
        self._drop()
        return NonFiniteLogits(text.cache.length, self.dtype_name)

    def _logits_of(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> list[SnapshotLogits]:
        """Appends tokens to each of several texts; the logits that they want, one after another, finite or not."""
        row, wanted = 4 * self._snapshot.vocab_size, sum(text.wanted for text in texts)
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
        with self._step:
            snapshot.program.run(texts, rotations, logits, cancelled, scored)
