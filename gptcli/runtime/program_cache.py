"""Keys and values of a text, in the layout of a program's operations. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from gptcli.kernels.bindings import CacheKind, Row, State
from gptcli.kernels.memory import Memory
from gptcli.model.cache.state_history import StateHistory
from gptcli.model.config import CACHE_STEP


def planes(kind: CacheKind, head_dim: int) -> list[int]:
    """Bytes per position of each array of a head's keys or values; see kernels.h's `head_bytes`."""
    return {"fp32": [4 * head_dim], "fp16": [2 * head_dim], "int8": [head_dim, 4]}[kind]


@dataclass
class Layout:
    """The blocks of one window. planes: those of each head of a block's keys, of its values, and so on."""

    window: int | None
    planes: list[int]

    @property
    def position_bytes(self) -> int:
        """Bytes of a token in all these blocks."""
        return sum(self.planes)


class ProgramCache:
    """Keys and values of one text of up to `limit` tokens; `tokens` are the cached ids. Raises MemoryError.

    Memory grows with the text; blocks with a window keep little more than that. state_bytes: of what else layers keep;
    see `model.cache.state.States`.
    """

    def __init__(self, layouts: Sequence[Layout], limit: int, state_bytes: int) -> None:
        self.tokens: list[int] = []
        self.span = 0  # tokens of the whole text that the keys are rotated for
        self.limit = limit
        self._parts = [_Part(layout) for layout in layouts]
        self._state, self._next = Memory(state_bytes), Memory(state_bytes)
        self._marks = StateHistory[Memory]()

    @property
    def length(self) -> int:
        """See `Cache.length`."""
        return len(self.tokens)

    def rows(self, tokens: int) -> list[Row]:
        """Makes room for this many more tokens; a `Row` for each window. More than `limit` in all is a bug."""
        assert self.length + tokens <= self.limit, f"{self.length + tokens} tokens in a cache limited to {self.limit}"
        for part in self._parts:
            part.reserve(self.length, tokens, self.limit)
        return [Row(part.memory.address, part.room, self.length - part.first) for part in self._parts]

    def state(self) -> State:
        """The layers' states before the next step, and the memory for those after it."""
        return State(self._state.address, self._next.address)

    def advance(self, tokens: Sequence[int]) -> None:
        """Counts tokens that a step has run as cached. After several, `truncate` can come back to here."""
        marked = self._marks.at(self.length) is self._state
        self.tokens += tokens
        self._state, self._next = self._next, Memory(self._state.size) if marked else self._state
        if len(tokens) > 1:
            self.mark()

    def mark(self) -> None:
        """See `Cache.mark`."""
        if self._state.size:
            self._marks.add(self.length, self._state)

    def truncate(self, length: int) -> None:
        """See `Cache.truncate`; keeps nothing if a window has already dropped keys that the next token needs.

        Where layers keep states, it keeps as many tokens as were last marked.
        """
        if length >= self.length:
            return
        length = self._kept(length)
        if length == 0:
            for part in self._parts:
                part.first = 0
        self._marks.drop_after(length)
        if self._state.size:
            self._state = self._marks.at(length) or Memory(self._state.size)
        del self.tokens[length:]

    def _kept(self, length: int) -> int:
        if self._state.size and length < self.length:
            length = self._marks.latest(length)
        needed = (part.first <= max(0, length - part.window + 1) for part in self._parts if part.window)
        return length if all(needed) else 0

    def copy(self, length: int) -> Self:
        """Another cache with the first `length` tokens; empty where `truncate` would keep none."""
        other = type(self)([part.layout for part in self._parts], self.limit, self._state.size)
        length = self._kept(length)
        if length:
            state = self._state if length == self.length else self._marks.at(length) or self._state
            ctypes.memmove(other._state.address, state.address, state.size)
            other.tokens, other.span = self.tokens[:length], self.span
            other._parts = [part.copy(length) for part in self._parts]
        return other


class _Part:
    """The blocks of one window. first: the position of their oldest token."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.window = layout, layout.window
        self.memory = Memory(0)
        self.room = self.first = 0

    def reserve(self, length: int, tokens: int, limit: int) -> None:
        """Makes room for more tokens after the first `length`."""
        cached = length - self.first
        if cached + tokens <= self.room:
            return
        if self.window is None:  # memory that is never touched costs nothing
            kept, room = cached, max(-(-(cached + tokens) // CACHE_STEP) * CACHE_STEP, 2 * self.room)
        else:
            kept, room = min(cached, self.window - 1), min(cached, self.window) + max(tokens, CACHE_STEP)
        self._move(cached - kept, kept, min(limit, room))

    def copy(self, length: int) -> _Part:
        """A copy of the tokens, with the same room."""
        other = _Part(self.layout)
        other.memory, other.room, other.first = self.memory, self.room, self.first
        other._move(0, length - self.first, self.room)
        return other

    def _move(self, dropped: int, kept: int, room: int) -> None:
        """Moves `kept` tokens, after the `dropped` oldest ones, to new memory."""
        memory = Memory(self.layout.position_bytes * room)
        at = 0  # bytes of a position in the planes before
        for size in self.layout.planes if kept else ():
            source = self.memory.address + at * self.room + dropped * size
            ctypes.memmove(memory.address + at * room, source, kept * size)
            at += size
        self.memory, self.room, self.first = memory, room, self.first + dropped
