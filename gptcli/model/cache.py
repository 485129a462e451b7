"""Keys and values of the tokens a decoder has seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from gptcli.model.config import CACHE_STEP, DecoderConfig


class KVCache:
    """Keys and values of every block, each (1, kv_heads, capacity, head_dim), for up to `limit` tokens.

    Memory is taken as the text grows; a block with a window keeps little more than that. `tokens` are the ids whose
    keys and values are valid; beyond them is scratch.
    """

    def __init__(self, config: DecoderConfig, limit: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens: list[int] = []
        self.span = 0  # tokens of the whole text, for which the keys are rotated
        self.limit = limit
        self.device, self.dtype = device, dtype
        self.capacity = 0  # positions that a block without a window has room for
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
    def length(self) -> int:
        """How many tokens are valid."""
        return len(self.tokens)

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
            room = min(self.limit, kept + max(tokens, CACHE_STEP))
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
        batch, kv_heads, _, head_dim = old.shape
        new = old.new_empty(batch, kv_heads, room, head_dim)
        new[:, :, :tokens] = old[:, :, :tokens]
        return new

    def storage(self, block: int) -> tuple[Tensor, Tensor]:
        """A block's keys and values with all their room, (1, kv_heads, room, head_dim), until `moves` changes."""
        return self._keys[block], self._values[block]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (1, kv_heads, T, head_dim) behind the valid tokens; returns all, (1, kv_heads, held + T, head_dim).

        `advance` makes them valid, once every block has written.
        """
        start = self.held(self._windows[block])
        end = start + keys.shape[2]
        all_keys, all_values = self._keys[block][:, :, :end], self._values[block][:, :, :end]
        all_keys[:, :, start:] = keys
        all_values[:, :, start:] = values
        return all_keys, all_values

    def advance(self, tokens: Sequence[int]) -> None:
        """Counts tokens that every block has written as valid."""
        self.tokens += tokens

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens; all of them, where a window's are no longer held."""
        oldest = {window: max(0, length - window + 1) for window in self._first if window is not None}
        if any(self._first[window] > needed for window, needed in oldest.items()):
            length = 0
        if length == 0:
            self._first = dict.fromkeys(self._first, 0)
        del self.tokens[length:]

    def keep_common(self, prompt: Sequence[int]) -> None:
        """Forgets all but the longest beginning that is also the prompt's."""
        pairs = zip(self.tokens, prompt, strict=False)
        self.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
