"""Keys and values of the tokens that a decoder has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.model.cache.state import States
from gptcli.model.config import CACHE_STEP, DecoderConfig


class KVCache:
    """Keys and values of every block, each (rows, kv_heads, room, head_dim), for up to `limit` tokens per row.

    Latent attention keeps its latents as keys of one head, and values of no channels.

    A row is a text. A cache starts with one row; `fill` gives it several. `texts` has the cached ids of each row,
    `states` what layers keep besides keys and values. Memory grows with the text; a block with a window keeps little
    more than that. Memory past the cached tokens is scratch: finite if `zeroed`, for code that multiplies it by zero.
    """

    def __init__(
        self, config: DecoderConfig, limit: int, device: torch.device, dtype: torch.dtype, *, zeroed: bool = False
    ) -> None:
        self.texts: list[list[int]] = [[]]
        self.span = 0  # tokens of the whole text that the keys are rotated for
        self.limit = limit
        self.device, self.dtype = device, dtype
        self.capacity = 0  # positions that fit into a block without a window
        self._new = Tensor.new_zeros if zeroed else Tensor.new_empty
        self.moves = 0  # how often the tensors were replaced
        self.states = States(config, device, dtype)
        self._windows = [block.attention.window if block.attention else None for block in config.blocks]
        self._room = dict.fromkeys(self._windows, 0)  # tokens that fit into a block, by window
        self._first = dict.fromkeys(self._windows, 0)  # the position of a block's oldest token, by window
        attentions = [block.attention for block in config.blocks]
        shapes = [(each.kv_heads, each.cached_dims) if each else (0, (0, 0)) for each in attentions]
        self._keys, self._values = (
            [torch.empty(1, kv_heads, 0, dims[kind], device=device, dtype=dtype) for kv_heads, dims in shapes]
            for kind in range(2)
        )

    @property
    def rows(self) -> int:
        """How many texts are cached."""
        return len(self.texts)

    @property
    def tokens(self) -> list[int]:
        """The cached ids of its only row."""
        assert self.rows == 1
        return self.texts[0]

    @property
    def length(self) -> int:
        """How many tokens are cached, for one row or rows of equal length."""
        return len(self.texts[0])

    def cached(self, window: int | None) -> int:
        """How many of the `length` tokens, the newest ones, are in a block with this window."""
        return self.length - self._first[window]

    def reserve(self, tokens: int) -> None:
        """Makes room for this many more tokens in each row; more than `limit` in all is a bug."""
        needed = self.length + tokens
        assert needed <= self.limit, f"{needed} tokens in a cache limited to {self.limit}"
        for window, room in self._room.items():
            if self.cached(window) + tokens > room:
                self._make_room(window, tokens)
        if needed > self.capacity:
            self.capacity = self._stepped(needed)

    def _make_room(self, window: int | None, tokens: int) -> None:
        self.moves += 1
        blocks = [index for index, own in enumerate(self._windows) if own == window]
        cached = self.cached(window)
        if window is None:
            room = self._stepped(cached + tokens)
            for tensors in (self._keys, self._values):
                for index in blocks:  # one at a time, so that each old tensor is freed first
                    tensors[index] = self._moved(tensors[index], cached, room)
        else:
            kept = min(cached, window - 1)
            room = min(self.limit, min(cached, window) + max(tokens, CACHE_STEP))
            # All are copied before any is replaced, because they then start at another token.
            moved = [
                [self._moved(tensors[index][:, :, cached - kept :], kept, room) for index in blocks]
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
        """A block's keys and values with all their room, (rows, kv_heads, room, head_dim), valid until `moves` changes.

        Dropped rows are included.
        """
        return self._keys[block], self._values[block]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (rows, kv_heads, T, head_dim) after the cached tokens; returns all, (rows, kv_heads, cached + T, ...).

        `advance` counts them as cached, once every block has written.
        """
        all_keys, all_values = self.read(block, keys.shape[2])
        start = self.cached(self._windows[block])
        all_keys[:, :, start:] = keys
        all_values[:, :, start:] = values
        return all_keys, all_values

    def read(self, block: int, tokens: int) -> tuple[Tensor, Tensor]:
        """A block's cached keys and values and `tokens` more, (rows, kv_heads, cached + tokens, head_dim)."""
        end = self.cached(self._windows[block]) + tokens
        return self._keys[block][: self.rows, :, :end], self._values[block][: self.rows, :, :end]

    def advance(self, *tokens: Sequence[int]) -> None:
        """Counts tokens that every block has written as cached: one sequence per row."""
        for text, new in zip(self.texts, tokens, strict=True):
            text += new
        self.states.advance()

    def mark(self) -> None:
        """Lets `truncate` come back to here without running tokens again, if layers keep states."""
        self.states.mark(self.length)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens; none if a window has already dropped keys that the next token needs.

        Where layers keep states, it keeps as many as were last marked.
        """
        if length >= self.length:
            return
        if self.states.any:
            length = self.states.latest(length)
        oldest = {window: max(0, length - window + 1) for window in self._first if window is not None}
        if any(self._first[window] > needed for window, needed in oldest.items()):
            length = 0
        if length == 0:
            self._first = dict.fromkeys(self._first, 0)
        self.states.back_to(length)
        for text in self.texts:
            del text[length:]

    def discard(self) -> None:
        """Forgets all tokens and frees their memory."""
        self.truncate(0)
        for tensors in (self._keys, self._values):
            tensors[:] = [tensor[:, :, :0].clone() for tensor in tensors]
        self._room = dict.fromkeys(self._room, 0)
        self.moves += 1

    def fill(self, caches: Sequence[KVCache]) -> None:
        """Copies other caches, each of one row, into its rows. Their texts must be equally long and windowed alike."""
        first = caches[0]
        assert all(cache.length == first.length and cache._first == first._first for cache in caches)
        counts = [first.cached(window) for window in self._windows]
        for own, name in ((self._keys, "_keys"), (self._values, "_values")):
            for block, tokens in enumerate(counts):
                sources = [getattr(cache, name)[block] for cache in caches]
                _, kv_heads, room, head_dim = sources[0].shape
                own[block] = self._new(sources[0], (len(caches), kv_heads, room, head_dim))
                for row, source in zip(own[block], sources, strict=True):
                    row[:, :tokens] = source[0, :, :tokens]
        self.texts = [list(cache.tokens) for cache in caches]
        self.span, self.capacity = first.span, first.capacity
        self._room, self._first = dict(first._room), dict(first._first)
        self.states.fill([cache.states for cache in caches])
        self.moves += 1

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Removes a row; the last row moves to its index."""
        last = self.rows - 1
        for block, window in enumerate(self._windows):
            for stored in (self._keys, self._values):
                stored[block][row, :, : self.cached(window)] = stored[block][last, :, : self.cached(window)]
        self.states.drop(row, last)
        self.texts[row] = self.texts[last]
        self.texts.pop()
