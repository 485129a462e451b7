"""A tensor of a GGUF file as transformers' checkpoint has it: the converter's changes are undone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import BrokenCheckpoint
from gptcli.files import open_regular

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Edit:
    """The converter's change of a tensor, to be undone.

    pairs: rows were reordered within each of this many heads. regrouped: rows of this many groups, [q k v] each with
    `queries` heads of q, became all q, all k, all v. minus: was added to every value. rates: logarithms became negative
    rates. value: the only value of a tensor that files have as a field.
    """

    pairs: int = 0
    regrouped: int = 0
    queries: int = 1
    minus: float = 0.0
    rates: bool = False
    value: float | None = None

    def undone(self, data: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
        """The bytes (n,) of the tensor before the change; it has this many rows."""
        import numpy as np

        if self.value is not None:
            return np.array([self.value], np.float32).view(np.uint8)
        if self.minus:
            return (data.view(np.float32) - np.float32(self.minus)).view(np.uint8)
        if self.rates:
            with np.errstate(all="ignore"):  # of damaged files: NaN, which loading finds
                logs: np.ndarray[Any, Any] = np.log(-data.view(np.float32))
            return logs.view(np.uint8)
        undone: np.ndarray[Any, Any] = data.reshape(rows, -1)[self.order(rows)].reshape(-1)
        return undone

    def order(self, rows: int) -> np.ndarray[Any, Any]:
        """The index in the file of each of this many rows, if rows were moved."""
        import numpy as np

        stored = np.arange(rows)
        if self.pairs:
            return stored.reshape(self.pairs, -1, 2).transpose(0, 2, 1).reshape(-1)
        unit = rows // (self.queries + 2)
        parts = np.split(stored, [self.queries * unit, (self.queries + 1) * unit])
        return np.concatenate([part.reshape(self.regrouped, -1) for part in parts], 1).reshape(-1)


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of transformers' checkpoint, stored in blocks of a type. edit: None if it was not changed."""

    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int
    edit: Edit | None = None

    def data(self) -> np.ndarray[Any, Any]:
        """Its bytes (n,), with the edit undone. Raises InputError, or BrokenCheckpoint if the file is too short."""
        import numpy as np

        with open_regular(self.file) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise BrokenCheckpoint(f"cannot read: {self.file}: it ends too early; truncated or damaged")
        array = np.frombuffer(data, np.uint8)
        return array if self.edit is None else self.edit.undone(array, (*self.shape, 1)[0])
