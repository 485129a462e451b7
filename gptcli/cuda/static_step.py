"""A decoder's step with the same operations for every token, so that a CUDA graph can replay it.

It runs the decoder's own blocks with another `TextPosition`. Everything that changes is in tensors at fixed addresses:
a tensor has the slot for keys and values, and a mask covers the rest of the cache's room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import ref

import torch
from torch import Tensor

from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.cache.state import States
from gptcli.model.config import RopeConfig
from gptcli.model.decoder import Decoder
from gptcli.model.position import Mix, Rotation

Outputs = tuple[Tensor, Tensor]  # logits (rows, vocab) in fp32, and whether all of them are finite, () bool


class StaticStep:
    """A step of one token for each row of a zeroed cache that has room for it. Its layers must keep no states."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache, self._fixed = decoder, ref(cache), _fixed(decoder, cache)
        self._rows = cache.rows
        assert not decoder.config.keeps_states
        self._states = cache.states
        self._windows_of = [block.attention.window if block.attention else None for block in decoder.config.blocks]
        storage = map(cache.storage, range(len(decoder.blocks)))
        self._storage = [(keys[: cache.rows], values[: cache.rows]) for keys, values in storage]
        self._rooms = dict(zip(self._windows_of, (keys.shape[2] for keys, _ in self._storage), strict=True))
        ropes = {attention.rope for attention in decoder.config.attentions}
        where = cache.capacity, cache.span, cache.device, cache.dtype
        self._tables = {rope: decoder.tables.of(rope, *where) for rope in ropes if rope is not None}
        # The position, a slot for each window, the ids: one tensor, so that feeding is one copy.
        self._inputs = torch.zeros(1 + len(self._rooms) + cache.rows, dtype=torch.int64, device=cache.device)

    def serves(self, cache: KVCache) -> bool:
        """Whether this can run the next step of a cache."""
        return self._cache() is cache and self._fixed == _fixed(self._decoder, cache)

    def feed(self, tokens: Sequence[int], cache: KVCache) -> None:
        """Sets the input of the next run: a token for each row, after the cached ones."""
        self._feed(cache.length, [cache.cached(window) for window in self._rooms], tokens)

    def feed_another(self, cache: KVCache) -> None:
        """Feeds other tokens and, if there is room, another position, so that a run writes only to scratch.

        A capture of that run cannot contain the next step's input, so its check shows that it reads what is fed.
        """
        slots = [cache.cached(window) for window in self._rooms]
        fits = all(slot + 1 < room for slot, room in zip(slots, self._rooms.values(), strict=True))
        ahead = int(fits and cache.length + 1 < cache.capacity)
        self._feed(cache.length + ahead, [slot + ahead for slot in slots], [0] * self._rows)

    def _feed(self, position: int, slots: Sequence[int], tokens: Sequence[int]) -> None:
        # The driver copies so few numbers at once: nothing waits, and the source may be freed.
        self._inputs.copy_(torch.tensor([position, *slots, *tokens]), non_blocking=True)

    def run(self) -> Outputs:
        """Runs what was fed, and writes its keys and values. The caller must then `advance` the cache."""
        slots = {window: self._inputs[index : index + 1] for index, window in enumerate(self._rooms, 1)}
        position = _SlotPosition(
            self._inputs[:1], slots, self._rooms, self._windows_of, self._storage, self._tables, self._states
        )
        hidden = self._decoder.run(self._inputs[-self._rows :].view(-1, 1), position)
        logits = self._decoder.logits(hidden[:, -1])
        return logits, all_finite(logits)

    def written(self, cache: KVCache) -> Tensor:
        """The keys and values of every block in the first slot after the cached ones, concatenated in fp32."""
        return torch.cat([slot.float().flatten() for slot in self._next_slots(cache)])

    def wipe(self, cache: KVCache) -> None:
        """Sets the same slots to zero."""
        for slot in self._next_slots(cache):
            slot.zero_()

    def _next_slots(self, cache: KVCache) -> list[Tensor]:
        blocks = zip(self._storage, self._windows_of, strict=True)
        return [tensor[:, :, cache.cached(window)] for pair, window in blocks for tensor in pair]


def _fixed(decoder: Decoder, cache: KVCache) -> tuple[object, ...]:
    """What a step depends on besides its input: the cache's memory, and the text's rotation."""
    borders = tuple(cache.span > border for border in sorted(decoder.config.rope_borders))
    return cache.moves, cache.capacity, cache.rows, borders


def all_finite(logits: Tensor) -> Tensor:
    """Whether no logit is NaN or infinite, () bool; ten times faster than checking each one."""
    return torch.stack(logits.aminmax()).isfinite().all()


@dataclass
class _SlotPosition:
    """The `TextPosition` of one run, computed from tensors by capturable operations."""

    positions: Tensor
    slots: dict[int | None, Tensor]
    rooms: dict[int | None, int]
    windows_of: Sequence[int | None]
    storage: Sequence[tuple[Tensor, Tensor]]
    tables: dict[RopeConfig, Rotation]
    states: States
    rotations: dict[RopeConfig, Rotation] = field(default_factory=dict)
    masks: dict[tuple[int | None, bool], Tensor] = field(default_factory=dict)

    def rotation(self, rope: RopeConfig) -> Rotation:
        """See `Position.rotation`."""
        if rope not in self.rotations:
            cos, sin = self.tables[rope]
            self.rotations[rope] = cos.index_select(0, self.positions), sin.index_select(0, self.positions)
        return self.rotations[rope]

    def mask(self, window: int | None, chunked: bool = False) -> Tensor:
        """See `TextPosition.mask`."""
        key = window, chunked
        if key not in self.masks:
            slot, keys = self.slots[window], torch.arange(self.rooms[window], device=self.positions.device)
            hidden = keys > slot
            if window is not None:
                hidden |= keys < slot - self.positions % window if chunked else keys <= slot - window
            zeros = torch.zeros(1, len(keys), dtype=self.storage[0][0].dtype, device=keys.device)
            self.masks[key] = zeros.masked_fill_(hidden, float("-inf"))
        return self.masks[key]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `TextPosition.write`."""
        slot = self.slots[self.windows_of[block]]
        for stored, new in zip(self.storage[block], (keys, values), strict=True):
            stored.index_copy_(2, slot, new)
        return self.storage[block]

    def read(self, block: int) -> tuple[Tensor, Tensor]:
        """See `TextPosition.read`."""
        return self.storage[block]

    def text_by_text(self, mix: Mix, *tensors: Tensor) -> Tensor:
        """See `Position.text_by_text`."""
        return mix(self, *tensors)
