"""A decoder's step whose operations are the same at every token: what changes is in tensors that stay where they are.

So it can be recorded once and played again. It runs the decoder's own blocks; only the place differs: keys and values
go where a tensor says, and the whole room of the cache is attended to under a mask. Knows nothing of recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor

from gptcli.model.cache import KVCache
from gptcli.model.config import RopeConfig
from gptcli.model.decoder import Decoder
from gptcli.model.position import Rotation

Outputs = tuple[Tensor, Tensor]  # logits (rows, vocab) in fp32, and whether all of them are finite, () bool


class StaticStep:
    """One token for each row of a zeroed cache that has room for one more."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache, self._state = decoder, ref(cache), _state(decoder, cache)
        self._rows = cache.rows
        self._windows_of = [block.attention.window for block in decoder.config.blocks]
        storage = map(cache.storage, range(len(decoder.blocks)))
        self._storage = [(keys[: cache.rows], values[: cache.rows]) for keys, values in storage]
        self._rooms = dict(zip(self._windows_of, (keys.shape[2] for keys, _ in self._storage), strict=True))
        ropes = {block.attention.rope for block in decoder.config.blocks}
        self._tables = {rope: decoder.tables.of(rope, cache) for rope in ropes if rope is not None}
        # The position, a slot for each window, the ids: one tensor, so that feeding it is one copy.
        self._inputs = torch.zeros(1 + len(self._rooms) + cache.rows, dtype=torch.int64, device=cache.device)

    def serves(self, cache: KVCache) -> bool:
        """Whether this is the next step of a cache."""
        return self._cache() is cache and self._state == _state(self._decoder, cache)

    def feed(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Says what the next run is of: a token for each row, behind the valid ones."""
        self._feed(cache.length, [cache.held(window) for window in self._rooms], tokens)

    def feed_another(self, cache: KVCache) -> None:
        """Feeds other tokens, and another place if there is room, in scratch: nothing of the text is changed by a run.

        A recording made of it has nothing of the step that is next, and must take all of that from what is fed.
        """
        held = [cache.held(window) for window in self._rooms]
        fits = all(slot + 1 < room for slot, room in zip(held, self._rooms.values(), strict=True))
        ahead = int(fits and cache.length + 1 < cache.capacity)
        self._feed(cache.length + ahead, [slot + ahead for slot in held], [0] * self._rows)

    def _feed(self, position: int, slots: Sequence[int], tokens: Sequence[int]) -> None:
        # The driver takes its own copy of so few numbers before this returns: nothing waits, nothing must be kept.
        self._inputs.copy_(torch.tensor([position, *slots, *tokens]), non_blocking=True)

    def run(self) -> Outputs:
        """Runs what was fed and writes its keys and values; the caller then lets the cache `advance`."""
        slots = {window: self._inputs[place : place + 1] for place, window in enumerate(self._rooms, 1)}
        place = _Slots(self._inputs[:1], slots, self._rooms, self._windows_of, self._storage, self._tables)
        hidden = self._decoder.run(self._inputs[-self._rows :].view(-1, 1), place)
        logits = self._decoder.logits(hidden[:, -1])
        return logits, all_finite(logits)

    def written(self, cache: KVCache) -> Tensor:
        """Keys and values of every block in the slots behind the valid ones, one after the other, in fp32."""
        return torch.cat([slot.float().flatten() for slot in self._behind(cache)])

    def wipe(self, cache: KVCache) -> None:
        """Makes them zero."""
        for slot in self._behind(cache):
            slot.zero_()

    def _behind(self, cache: KVCache) -> list[Tensor]:
        blocks = zip(self._storage, self._windows_of, strict=True)
        return [kept[:, :, cache.held(window)] for pair, window in blocks for kept in pair]


def _state(decoder: Decoder, cache: KVCache) -> tuple[object, ...]:
    """What a step depends on besides what it is fed: the cache's memory, and how the text is rotated."""
    borders = tuple(cache.span > border for border in sorted(decoder.config.rope_borders))
    return cache.moves, cache.capacity, cache.rows, borders


def all_finite(logits: Tensor) -> Tensor:
    """Whether none is NaN or infinite, () bool: a tenth of the time of looking at each of them."""
    return torch.stack(logits.aminmax()).isfinite().all()


class _Slots:
    """The `Place` of one run: everything about it comes from tensors, as the run's operations."""

    def __init__(
        self,
        positions: Tensor,
        slots: dict[int | None, Tensor],
        rooms: dict[int | None, int],
        windows_of: Sequence[int | None],
        storage: Sequence[tuple[Tensor, Tensor]],
        tables: dict[RopeConfig, Rotation],
    ) -> None:
        self.positions = positions
        self._slots, self._rooms, self._windows_of, self._storage = slots, rooms, windows_of, storage
        self._tables = tables
        self._rotations: dict[RopeConfig, Rotation] = {}
        self._masks: dict[int | None, Tensor] = {}

    def rotation(self, rope: RopeConfig) -> Rotation:
        """See `Place.rotation`."""
        if rope not in self._rotations:
            cos, sin = self._tables[rope]
            self._rotations[rope] = cos.index_select(0, self.positions), sin.index_select(0, self.positions)
        return self._rotations[rope]

    def mask(self, window: int | None) -> Tensor:
        """See `Place.mask`."""
        if window not in self._masks:
            slot, keys = self._slots[window], torch.arange(self._rooms[window], device=self.positions.device)
            hidden = keys > slot
            if window is not None:
                hidden |= keys <= slot - window
            zeros = torch.zeros(1, len(keys), dtype=self._storage[0][0].dtype, device=keys.device)
            self._masks[window] = zeros.masked_fill_(hidden, float("-inf"))
        return self._masks[window]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Place.write`."""
        slot = self._slots[self._windows_of[block]]
        for kept, new in zip(self._storage[block], (keys, values), strict=True):
            kept.index_copy_(2, slot, new)
        return self._storage[block]
