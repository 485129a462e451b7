"""Keys and values of the tokens a decoder has seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from gptcli.model.config import CACHE_STEP, DecoderConfig


class KVCache:
    """Keys and values of every block, each (rows, kv_heads, capacity, head_dim), for up to `limit` tokens.

    It begins with one row, for one text; `fill` makes it hold several, all equally long. Memory is taken as the text
    grows; a block with a window keeps little more than that. `texts` are the ids, a list a row, whose keys and values
    are valid; beyond them is scratch: finite numbers if it is `zeroed`, as those who multiply it with zero need.
    """

    def __init__(
        self, config: DecoderConfig, limit: int, device: torch.device, dtype: torch.dtype, *, zeroed: bool = False
    ) -> None:
        self.texts: list[list[int]] = [[]]
        self.span = 0  # tokens of the whole text, for which the keys are rotated
        self.limit = limit
        self.device, self.dtype = device, dtype
        self.capacity = 0  # positions that a block without a window has room for
        self._new = Tensor.new_zeros if zeroed else Tensor.new_empty
        self.moves = 0  # how often the tensors were exchanged for others
        self._windows = [block.attention.window for block in config.blocks]
        self._room = dict.fromkeys(self._windows, 0)  # tokens that a block has room for, by window
        self._first = dict.fromkeys(self._windows, 0)  # the position of the oldest token it holds, by window
        empty = [
            torch.empty(1, block.attention.kv_heads, 0, block.attention.head_dim, device=device, dtype=dtype)
            for block in config.blocks
        ]
        self._keys = list(empty)
        self._values = list(empty)

    @property
    def rows(self) -> int:
        """How many texts it holds."""
        return len(self.texts)

    @property
    def tokens(self) -> list[int]:
        """The valid ids of its only row."""
        assert self.rows == 1
        return self.texts[0]

    @property
    def length(self) -> int:
        """How many tokens are valid in each row."""
        return len(self.texts[0])

    def held(self, window: int | None) -> int:
        """How many of the valid tokens, the newest ones, a block with this window holds."""
        return self.length - self._first[window]

    def reserve(self, tokens: int) -> None:
        """Makes room for this many further tokens; past `limit` it is our bug."""
        needed = self.length + tokens
        assert needed <= self.limit, f"{needed} tokens in a cache limited to {self.limit}"
        for window, room in self._room.items():
            if self.held(window) + tokens > room:
                self._make_room(window, tokens)
        if needed > self.capacity:
            self.capacity = self._stepped(needed)

    def _make_room(self, window: int | None, tokens: int) -> None:
        self.moves += 1
        blocks = [index for index, own in enumerate(self._windows) if own == window]
        held = self.held(window)
        if window is None:
            room = self._stepped(held + tokens)
            for tensors in (self._keys, self._values):
                for index in blocks:  # one at a time: the old one goes before the next one comes
                    tensors[index] = self._moved(tensors[index], held, room)
        else:
            kept = min(held, window - 1)
            room = min(self.limit, min(held, window) + max(tokens, CACHE_STEP))
            # All of them before any is exchanged, for they no longer begin at the same token.
            moved = [
                [self._moved(tensors[index][:, :, held - kept :], kept, room) for index in blocks]
                for tensors in (self._keys, self._values)
            ]
            for tensors, new in zip((self._keys, self._values), moved, strict=True):
                for index, tensor in zip(blocks, new, strict=True):
                    tensors[index] = tensor
            self._first[window] = self.length - kept
        self._room[window] = room

    def _stepped(self, tokens: int) -> int:
        return min(self.limit, -(-tokens // CACHE_STEP) * CACHE_STEP)

    def _moved(self, old: Tensor, tokens: int, room: int) -> Tensor:
        _, kv_heads, _, head_dim = old.shape
        new = self._new(old, (self.rows, kv_heads, room, head_dim))
        new[:, :, :tokens] = old[: self.rows, :, :tokens]
        return new

    def storage(self, block: int) -> tuple[Tensor, Tensor]:
        """A block's keys and values with all their room, (rows, kv_heads, room, head_dim), until `moves` changes.

        Where rows were dropped there is room for them, too.
        """
        return self._keys[block], self._values[block]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (rows, kv_heads, T, head_dim) behind the valid tokens; returns all, with held + T in place of T.

        `advance` makes them valid, once every block has written.
        """
        start = self.held(self._windows[block])
        end = start + keys.shape[2]
        all_keys, all_values = (stored[block][: self.rows, :, :end] for stored in (self._keys, self._values))
        all_keys[:, :, start:] = keys
        all_values[:, :, start:] = values
        return all_keys, all_values

    def advance(self, *tokens: Sequence[int]) -> None:
        """Counts tokens that every block has written, equally many for each row, as valid."""
        for text, new in zip(self.texts, tokens, strict=True):
            text += new

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens; all of them, where a window's are no longer held."""
        oldest = {window: max(0, length - window + 1) for window in self._first if window is not None}
        if any(self._first[window] > needed for window, needed in oldest.items()):
            length = 0
        if length == 0:
            self._first = dict.fromkeys(self._first, 0)
        for text in self.texts:
            del text[length:]

    def discard(self) -> None:
        """Forgets everything, and gives the memory back that it was in."""
        self.truncate(0)
        for tensors in (self._keys, self._values):
            tensors[:] = [tensor[:, :, :0].clone() for tensor in tensors]
        self._room = dict.fromkeys(self._room, 0)
        self.moves += 1

    def keep_common(self, prompt: Sequence[int]) -> None:
        """Forgets all but the longest beginning that is also the prompt's."""
        pairs = zip(self.tokens, prompt, strict=False)
        self.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def fill(self, caches: Sequence[KVCache]) -> None:
        """Becomes a copy of other caches of one row each, which were filled alike with equally long texts."""
        first = caches[0]
        assert all(cache.length == first.length and cache._first == first._first for cache in caches)
        held = [first.held(window) for window in self._windows]
        for own, name in ((self._keys, "_keys"), (self._values, "_values")):
            for block, tokens in enumerate(held):
                sources = [getattr(cache, name)[block] for cache in caches]
                _, kv_heads, room, head_dim = sources[0].shape
                own[block] = self._new(sources[0], (len(caches), kv_heads, room, head_dim))
                for row, source in zip(own[block], sources, strict=True):
                    row[:, :tokens] = source[0, :, :tokens]
        self.texts = [list(cache.tokens) for cache in caches]
        self.span, self.capacity = first.span, first.capacity
        self._room, self._first = dict(first._room), dict(first._first)
        self.moves += 1

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Forgets a row; the last one takes its place."""
        last = self.rows - 1
        for block, window in enumerate(self._windows):
            for stored in (self._keys, self._values):
                stored[block][row, :, : self.held(window)] = stored[block][last, :, : self.held(window)]
        self.texts[row] = self.texts[last]
        self.texts.pop()
