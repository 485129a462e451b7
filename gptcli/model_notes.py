"""Notes for the user on a model's files: what is left over or unusual, and changes no result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SHORT = 4  # names


@dataclass(frozen=True)
class Note:
    """One thing to know. names: of the fields, tensors or tokens that it is about."""

    what: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what}: {', '.join(self.names)}" if self.names else self.what

    def shortened(self) -> str:
        """The same with a few names and the number of all."""
        if len(self.names) <= _SHORT:
            return str(self)
        return f"{self.what}: {', '.join(self.names[:_SHORT])} and {len(self.names) - _SHORT} more"


def one_line(notes: Iterable[Note]) -> str:
    """All notes in one line, shortened; empty if there are none."""
    return "; ".join(note.shortened() for note in notes)
