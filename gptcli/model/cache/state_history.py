"""Earlier states of a text, to which it can go back. No torch."""

from __future__ import annotations

from typing import Generic, TypeVar

MOST_EARLIER_STATES = 4  # of one text; each is as large as the state

State = TypeVar("State")


class StateHistory(Generic[State]):
    """The states of all layers after a text's first tokens, for a few numbers of tokens, ascending."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, State]] = []

    def add(self, length: int, state: State) -> None:
        """Keeps the state after `length` tokens. If there are too many, drops the one nearest to its neighbours.

        The newest one always stays.
        """
        marks = self._marks
        if length == 0 or (marks and marks[-1][0] == length):
            return
        marks.append((length, state))
        if len(marks) > MOST_EARLIER_STATES:
            ends = [0, *(end for end, _ in marks)]
            del marks[min(range(len(marks) - 1), key=lambda index: ends[index + 2] - ends[index])]

    def latest(self, length: int) -> int:
        """The longest kept length that is at most `length`; 0 if there is none."""
        return max((end for end, _ in self._marks if end <= length), default=0)

    def at(self, length: int) -> State | None:
        """The state after a kept length; None for 0."""
        return next((state for end, state in self._marks if end == length), None)

    def drop_after(self, length: int) -> None:
        """Forgets the states of more than `length` tokens."""
        self._marks = [mark for mark in self._marks if mark[0] <= length]
