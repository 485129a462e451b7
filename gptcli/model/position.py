"""The positions of a step's tokens: everything in a decoder that depends on positions asks these objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.cache.state import States
from gptcli.model.config import DecoderConfig, RopeConfig
from gptcli.model.rope import rotary_table

Rotation = tuple[Tensor, Tensor]  # cos and sin


class Position(Protocol):
    """The positions of T tokens in their texts, as the blocks ask for them."""

    @property
    def positions(self) -> Tensor:
        """(T,) int64, 0 for the first token of a text."""

    def rotation(self, rope: RopeConfig) -> Rotation:
        """cos and sin for these positions, each (T, 1, dim)."""

    def text_by_text(self, mix: Mix, *tensors: Tensor) -> Tensor:
        """Mixes tokens, each (rows, T, ...), with those of their own text; (rows, T, ...)."""


class TextPosition(Position, Protocol):
    """A `Position` of tokens of one text, or of equally long rows."""

    def mask(self, window: int | None, chunked: bool = False) -> Tensor | None:
        """Which keys returned by `write` each token may see, (T, S), as `attend` takes it.

        chunked: the text is cut every `window` tokens; see `AttentionConfig.chunked`.
        """

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (rows, kv_heads, T, head_dim); returns all keys and values to attend to, (rows, kv_heads, S, ...)."""

    def read(self, block: int) -> tuple[Tensor, Tensor]:
        """What `write` returned for an earlier block."""

    @property
    def states(self) -> States:
        """What layers keep besides keys and values."""


Mix = Callable[..., Tensor]
"""Takes a `TextPosition` and tensors (rows, T, ...) of that text's tokens; returns one such tensor."""


class RotaryTables:
    """cos and sin of a text's first positions, per rope."""

    def __init__(self) -> None:
        self._tables: dict[tuple[RopeConfig, bool], Rotation] = {}

    def of(self, rope: RopeConfig, positions: int, span: int, device: torch.device, dtype: torch.dtype) -> Rotation:
        """cos and sin, each (positions or more, 1, dim), as a text of `span` tokens is rotated."""
        key = rope, rope.border is not None and span > rope.border
        table = self._tables.get(key)
        if table is None or len(table[0]) < positions:
            with torch.inference_mode(False):  # gradients may flow past it later
                table = self._tables[key] = rotary_table(rope, positions, span, device, dtype)
        return table


class AppendPosition:
    """T tokens after the cached ones. The cache has reserved room for them."""

    def __init__(self, tables: RotaryTables, cache: KVCache, T: int) -> None:
        self._tables, self._cache, self._T = tables, cache, T
        self._rotations: dict[RopeConfig, Rotation] = {}
        self._masks: dict[tuple[int | None, bool], Tensor | None] = {}

    @cached_property
    def positions(self) -> Tensor:
        """See `Position.positions`."""
        return torch.arange(self._cache.length, self._cache.length + self._T, device=self._cache.device)

    def rotation(self, rope: RopeConfig) -> Rotation:
        """See `Position.rotation`."""
        if rope not in self._rotations:
            cache = self._cache
            cos, sin = self._tables.of(rope, cache.capacity, cache.span, cache.device, cache.dtype)
            rows = slice(cache.length, cache.length + self._T)
            self._rotations[rope] = cos[rows], sin[rows]
        return self._rotations[rope]

    def mask(self, window: int | None, chunked: bool = False) -> Tensor | None:
        """See `TextPosition.mask`."""
        key = window, chunked
        if key not in self._masks:
            cache = self._cache
            self._masks[key] = _mask(self.positions, cache.length, cache.cached(window), *key, cache.dtype)
        return self._masks[key]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `TextPosition.write`."""
        return self._cache.write(block, keys, values)

    def read(self, block: int) -> tuple[Tensor, Tensor]:
        """See `TextPosition.read`."""
        return self._cache.read(block, self._T)

    @property
    def states(self) -> States:
        """See `TextPosition.states`."""
        return self._cache.states

    def text_by_text(self, mix: Mix, *tensors: Tensor) -> Tensor:
        """See `Position.text_by_text`."""
        return mix(self, *tensors)


class SideBySide:
    """Tokens of several texts in one row, each after the tokens of its own cache, which has reserved room for them."""

    def __init__(self, tables: RotaryTables, caches: Sequence[KVCache], counts: Sequence[int]) -> None:
        """counts: how many tokens each text has, in the row's order."""
        self._counts = list(counts)
        self._texts = [AppendPosition(tables, cache, count) for cache, count in zip(caches, counts, strict=True)]
        self._rotations: dict[RopeConfig, Rotation] = {}

    @cached_property
    def positions(self) -> Tensor:
        """See `Position.positions`."""
        return torch.cat([text.positions for text in self._texts])

    def rotation(self, rope: RopeConfig) -> Rotation:
        """See `Position.rotation`."""
        if rope not in self._rotations:
            cos, sin = zip(*(text.rotation(rope) for text in self._texts), strict=True)
            self._rotations[rope] = torch.cat(cos), torch.cat(sin)
        return self._rotations[rope]

    def text_by_text(self, mix: Mix, *tensors: Tensor) -> Tensor:
        """See `Position.text_by_text`."""
        parts = zip(self._texts, *(torch.split(tensor, self._counts, 1) for tensor in tensors), strict=True)
        return torch.cat([mix(*part) for part in parts], 1)


class WholeTexts:
    """The T tokens of whole texts, each a row. Nothing is cached, so gradients flow through all tokens."""

    def __init__(
        self, config: DecoderConfig, tables: RotaryTables, shape: tuple[int, int], device: torch.device
    ) -> None:
        """shape: texts and their tokens."""
        rows, self._T = shape
        self._tables = tables
        self.positions = torch.arange(self._T, device=device)
        self.states = States(config, device, torch.float32, rows)
        self._masks: dict[tuple[int | None, bool], Tensor | None] = {}
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def rotation(self, rope: RopeConfig) -> Rotation:
        """See `Position.rotation`; in fp32."""
        cos, sin = self._tables.of(rope, self._T, self._T, self.positions.device, torch.float32)
        return cos[: self._T], sin[: self._T]

    def mask(self, window: int | None, chunked: bool = False) -> Tensor | None:
        """See `TextPosition.mask`."""
        key = window, chunked
        if key not in self._masks:
            self._masks[key] = _mask(self.positions, 0, 0, *key, torch.float32)
        return self._masks[key]

    def write(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `TextPosition.write`: returns what it gets."""
        self._written[block] = keys, values
        return keys, values

    def read(self, block: int) -> tuple[Tensor, Tensor]:
        """See `TextPosition.read`."""
        return self._written[block]

    def text_by_text(self, mix: Mix, *tensors: Tensor) -> Tensor:
        """See `Position.text_by_text`."""
        return mix(self, *tensors)


def _mask(
    positions: Tensor, length: int, cached: int, window: int | None, chunked: bool, dtype: torch.dtype
) -> Tensor | None:
    """`TextPosition.mask` for tokens at `positions`, after `length` others, of which `cached` are among the keys."""
    T, device = len(positions), positions.device
    seen = causal_mask(cached, T, window, device)
    if window is None or not chunked or length + T <= window:
        return seen
    first = length - cached  # the position of the oldest key
    starts = positions // window * window - first
    same = torch.arange(cached + T, device=device) >= starts[:, None]  # (T, S)
    if T > 1:
        return same if seen is None else same & seen
    return torch.zeros_like(same, dtype=dtype).masked_fill(~same, float("-inf"))


def causal_mask(
    cached: int, T: int, window: int | None, device: torch.device, *, always: bool = False
) -> Tensor | None:
    """Which keys T new queries may see, of the `cached` ones before them and their own: (T, cached + T) bool.

    None if `attend` needs none, unless `always`: for one query, and for a text's first queries within the window.
    """
    if not always and (T == 1 or (cached == 0 and (window is None or T <= window))):
        return None
    queries, keys = torch.arange(cached, cached + T, device=device)[:, None], torch.arange(cached + T, device=device)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)
