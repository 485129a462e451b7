"""Keys and values of the tokens a decoder has seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from gptcli.model.config import DecoderConfig

_STEP = 512  # tokens by which the cache grows


class KVCache:
    """Keys and values of every block, each (1, kv_heads, capacity, head_dim), for up to `limit` tokens.

    Memory is taken as the text grows. `tokens` are the ids whose keys and values are valid; beyond them is scratch.
    """

    def __init__(self, config: DecoderConfig, limit: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens: list[int] = []
        self.span = 0  # tokens of the whole text, for which the keys are rotated
        self.limit = limit
        self.capacity = 0
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

    def reserve(self, tokens: int) -> None:
        """Makes room for this many further tokens; past `limit` it is our bug."""
        needed = self.length + tokens
        assert needed <= self.limit, f"{needed} tokens in a cache limited to {self.limit}"
        if needed > self.capacity:
            capacity = min(self.limit, -(-needed // _STEP) * _STEP)
            for tensors in (self._keys, self._values):  # one at a time: the old one goes before the next one comes
                for block, old in enumerate(tensors):
                    tensors[block] = self._grown(old, capacity)
            self.capacity = capacity

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        batch, kv_heads, _, head_dim = old.shape
        new = old.new_empty(batch, kv_heads, capacity, head_dim)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (1, kv_heads, T, head_dim) behind the valid tokens; returns all, (1, kv_heads, length + T, head_dim).

        `advance` makes them valid, once every block has written.
        """
        end = self.length + keys.shape[2]
        all_keys, all_values = self._keys[block][:, :, :end], self._values[block][:, :, :end]
        all_keys[:, :, self.length :] = keys
        all_values[:, :, self.length :] = values
        return all_keys, all_values

    def advance(self, tokens: Sequence[int]) -> None:
        """Counts tokens that every block has written as valid."""
        self.tokens += tokens

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        del self.tokens[length:]

    def keep_common(self, prompt: Sequence[int]) -> None:
        """Forgets all but the longest beginning that is also the prompt's."""
        pairs = zip(self.tokens, prompt, strict=False)
        self.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
