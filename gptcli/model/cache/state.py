"""What layers keep of a text besides keys and values: the last inputs of a convolution, and a state of fixed size.

A state sums up all tokens so far, so it cannot be cut back. A few earlier ones are kept, to run what follows again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.model.cache.state_history import StateHistory
from gptcli.model.config import DecoderConfig

State = tuple[Tensor, ...]  # of one layer, each (rows, *shape); never written to once it is stored


class States:
    """The states of every layer, by its index, for the rows of a cache. Layers without one have an empty tuple.

    `now` belongs to the cached tokens. States that layers `put` include the running tokens; `advance` makes them `now`.
    """

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype, rows: int = 1) -> None:
        shapes = [block.state.state_shapes(config.hidden_size) if block.state else () for block in config.blocks]
        self.any = config.keeps_states
        # A convolution's inputs keep their dtype; sums over a whole text are fp32.
        self._empty = tuple(
            tuple(
                torch.zeros(rows, *shape, device=device, dtype=torch.float32 if index else dtype)
                for index, shape in enumerate(each)
            )
            for each in shapes
        )
        self.now: list[State] = list(self._empty)
        self._next: dict[int, State] = {}
        self._marks = StateHistory[tuple[State, ...]]()

    def put(self, block: int, state: State) -> None:
        """Takes a layer's state after the running tokens."""
        self._next[block] = state

    def advance(self) -> None:
        """Counts the running tokens as cached."""
        for block, state in self._next.items():
            self.now[block] = state
        self._next.clear()

    def mark(self, length: int) -> None:
        """Lets a text of `length` tokens come back to here; see `StateHistory.add`."""
        if self.any:
            self._marks.add(length, tuple(self.now))

    def latest(self, length: int) -> int:
        """The length of the longest marked text of at most `length` tokens; 0 if there is none."""
        return self._marks.latest(length)

    def back_to(self, length: int) -> None:
        """Returns to a marked length, or to 0."""
        self._marks.drop_after(length)
        self.now = list(self._marks.at(length) or self._empty)
        self._next.clear()

    def fill(self, others: Sequence[States]) -> None:
        """Copies others, each of one row, into its rows."""
        self.now = [
            tuple(torch.cat(tensors) for tensors in zip(*states, strict=True))
            for states in zip(*(other.now for other in others), strict=True)
        ]
        self._marks.drop_after(0)

    def drop(self, row: int, last: int) -> None:
        """Removes a row; the last row moves to its index."""
        kept = [last if index == row else index for index in range(last)]
        self.now = [tuple(tensor[kept] for tensor in state) for state in self.now]
