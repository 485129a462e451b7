"""Runs a prepared copy of a decoder: one text at a time, and its last logits alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from gptcli.errors import NonFiniteLogits
from gptcli.kernels.bindings import Functions
from gptcli.kernels.memory import Memory
from gptcli.runtime.fast_start.snapshot_file import Prepared
from gptcli.runtime.program import CHUNK, Storage


class PreparedCache:
    """Keys and values of one text, with room for so many tokens; `tokens` are the ids that they are of."""

    def __init__(self, prepared: Prepared, room: int) -> None:
        self.tokens: list[int] = []
        shapes = [(op.kv_heads, op.size) for op in prepared.program.attends]
        self._memory = Memory(sum(2 * 4 * heads * room * dim for heads, dim in shapes))
        self.storages = []
        address = self._memory.address
        for heads, dim in shapes:
            size = 4 * heads * room * dim
            self.storages.append(Storage(address, address + size, 0, room * dim))
            address += 2 * size

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        """Forgets all but the first so many tokens."""
        del self.tokens[length:]

    def keep_common(self, prompt: Sequence[int]) -> None:
        """Forgets all but the longest beginning that is also the prompt's."""
        pairs = zip(self.tokens, prompt, strict=False)
        self.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))


class PreparedLogits:
    """One row of logits; good until the next step."""

    def __init__(self, memory: Memory, offset: int) -> None:
        self._memory, self._offset = memory, offset

    def data_ptr(self) -> int:
        """Where they are, (vocab,) in fp32."""
        return self._memory.address + self._offset


class PreparedEngine:
    """A prepared decoder with room for one text of `room` tokens; see `runtime.engine.Engine`.

    Raises MemoryError.
    """

    failures: tuple[str, ...] = ()  # see `Engine.failures`

    def __init__(self, prepared: Prepared, library: Functions, ctx_size: int, room: int) -> None:
        self.ctx_size = ctx_size
        self.load_s = 0.0  # seconds it took to load
        self.dtype_name, self.device_name = prepared.dtype, "cpu"
        self.library = library
        self.room = room
        self._prepared = prepared
        self._cache = PreparedCache(prepared, room)
        self._logits = Memory(4 * prepared.vocab_size)
        prepared.program.bind(self._cache.storages)

    def new_cache(self) -> PreparedCache:
        """Its only cache, emptied."""
        self._cache.truncate(0)
        return self._cache

    def most_rows(self, tokens: int) -> int:
        """One: texts do not share a step here."""
        return 1

    def most_ahead(self, cache: PreparedCache) -> int:
        """How many tokens may be run ahead of the next one, so that they can be taken back."""
        return max(0, self.room - cache.length - 1)

    def prefill(
        self,
        tokens: Sequence[int],
        cache: PreparedCache,
        on_progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> PreparedLogits | None:
        """Runs tokens behind those in the cache, as `Engine.prefill` does. Raises NonFiniteLogits and MemoryError."""
        logits = None
        for start in range(0, len(tokens), CHUNK):
            if cancelled():
                return None
            chunk = tokens[start : start + CHUNK]
            [logits] = self._run(chunk, cache, wanted=1)
            on_progress(start + len(chunk), len(tokens))
        return logits

    def step(self, tokens: Sequence[int], cache: PreparedCache) -> list[PreparedLogits]:
        """Runs a token, and perhaps as many more as `most_ahead` allows; logits behind each. Raises as `prefill`."""
        return self._run(tokens, cache, wanted=len(tokens))

    def _run(self, tokens: Sequence[int], cache: PreparedCache, wanted: int) -> list[PreparedLogits]:
        prepared, position = self._prepared, cache.length
        assert position + len(tokens) <= self.room
        assert 0 <= min(tokens) <= max(tokens) < prepared.vocab_size
        row = 4 * prepared.vocab_size
        if self._logits.size < wanted * row:
            self._logits = Memory(wanted * row)
        prepared.program.run(
            tokens,
            texts=1,
            position=position,
            cached=[position] * prepared.cache_kinds,
            rotations=[table.at(position) for table in prepared.tables],
            wanted=wanted,
            logits=self._logits.address,
        )
        cache.tokens += tokens
        if not self.library.all_finite(self._logits.address, wanted * prepared.vocab_size):
            raise NonFiniteLogits(cache.length, self.dtype_name)
        return [PreparedLogits(self._logits, place * row) for place in range(wanted)]
