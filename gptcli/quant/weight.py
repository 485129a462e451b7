"""Weights in their stored form, dense or packed: what all formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

_CHUNK = 1 << 18  # weights expanded at once: they fit in a core's cache
_CUDA_CHUNK = 1 << 24  # enough to keep a GPU busy for longer than a launch takes


@dataclass(frozen=True)
class StoredWeight(ABC):
    """A matrix of (rows, columns), or a stack of them, one per expert.

    A format is a frozen dataclass of tensors, with rows as their last axis but one; so this class can slice and join
    weights of any format.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""

    @abstractmethod
    def expanded(self) -> Tensor:
        """The whole weight in fp32."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The whole weight, computed in fp32 and rounded once to `dtype`."""
        if len(self.shape) > 2:
            return torch.stack([self.expert(index).dequantize(dtype) for index in range(self.shape[0])])
        return torch.cat([self.rows(chunk).expanded().to(dtype) for chunk in self.chunks()])

    def chunks(self) -> Iterator[slice]:
        """Ranges of a matrix's rows that are small enough to expand one at a time."""
        rows, columns = self.shape
        on_cuda = any(tensor.is_cuda for tensor in self.tensors().values())
        step = max(1, (_CUDA_CHUNK if on_cuda else _CHUNK) // columns)
        return (slice(start, start + step) for start in range(0, rows, step))

    def rows(self, index: slice | Tensor) -> Self:
        """The chosen rows, in the same form."""
        return self._changed(lambda tensor: tensor[..., index, :])

    def columns(self, ranges: Sequence[tuple[int, int]]) -> Self | None:
        """Ranges (start, stop) of columns, in the same form; None if one begins or ends within a group."""
        count = self.shape[-1]
        # A single entry, (rows, 1), holds for all columns.
        split = [tensor.shape[-1] for tensor in self.tensors().values() if tensor.shape[-1] > 1]
        if any(edge * width % count for each in ranges for edge in each for width in split):
            return None

        def chosen(tensor: Tensor) -> Tensor:
            width = tensor.shape[-1]
            parts = [tensor[..., start * width // count : stop * width // count] for start, stop in ranges]
            return tensor if width == 1 else torch.cat(parts, -1)

        return self._changed(chosen)

    def expert(self, index: int) -> Self:
        """One matrix of a stack."""
        return self._changed(lambda tensor: tensor[index])

    def experts(self, index: Tensor) -> Self:
        """The chosen matrices of a stack. index: (n,)."""
        return self._changed(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> Self:
        """The same weight on another device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
