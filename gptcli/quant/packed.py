"""Weights that stay in fewer bits, and the modules that multiply with them: what all schemes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHUNK = 1 << 18  # weights expanded at once: what a core's cache holds
_CUDA_CHUNK = 1 << 24  # what a GPU is busy with for longer than it is told to


@dataclass(frozen=True)
class PackedWeight(ABC):
    """A matrix of (rows, columns) in fewer bits, or a stack of them, one an expert.

    A scheme is a frozen dataclass whose tensors all have rows as their last axis but one; so rows can be taken and
    weights be joined without knowing what is in them.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""

    @abstractmethod
    def expanded(self) -> Tensor:
        """The whole weight in fp32."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight itself, computed in fp32 and rounded once to `dtype`."""
        if len(self.shape) > 2:
            return torch.stack([self.expert(index).dequantize(dtype) for index in range(self.shape[0])])
        return torch.cat([self.rows(chunk).expanded().to(dtype) for chunk in self.chunks()])

    def chunks(self) -> Iterator[slice]:
        """Ranges of a matrix's rows, each small enough to stay in a core's cache when expanded."""
        rows, columns = self.shape
        on_cuda = any(tensor.is_cuda for tensor in self.tensors().values())
        step = max(1, (_CUDA_CHUNK if on_cuda else _CHUNK) // columns)
        return (slice(start, start + step) for start in range(0, rows, step))

    def rows(self, index: slice | Tensor) -> Self:
        """The chosen rows, still packed."""
        return self._changed(lambda tensor: tensor[..., index, :])

    def expert(self, index: int) -> Self:
        """One matrix of a stack."""
        return self._changed(lambda tensor: tensor[index])

    def experts(self, index: Tensor) -> Self:
        """The chosen matrices of a stack, (n,), still packed."""
        return self._changed(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> Self:
        """The same weight on another device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _layout(self) -> tuple[Any, ...]:
        """What weights must have in common to be joined."""
        values = [getattr(self, field.name) for field in fields(self)]
        described = [(value.shape[-1], value.dtype) if isinstance(value, Tensor) else value for value in values]
        return (type(self), *described)


def concat_rows(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Weights alike, one below the other."""
    return _joined(parts, lambda tensors: torch.cat(tensors, dim=-2))


def stack(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Matrices alike, one behind the other."""
    return _joined(parts, torch.stack)


def alike(parts: Sequence[PackedWeight]) -> bool:
    """Whether weights can be joined without being expanded."""
    return len({part._layout() for part in parts}) == 1


def _joined(parts: Sequence[PackedWeight], join: Callable[[list[Tensor]], Tensor]) -> PackedWeight:
    each = [part.tensors() for part in parts]
    joined: dict[str, Any] = {name: join([tensors[name] for tensors in each]) for name in each[0]}
    return replace(parts[0], **joined)


class PackedLinear(nn.Module):
    """A linear layer that keeps its weight packed and expands it a chunk of rows at a time."""

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        return packed_linear(x, self.weight, self.bias)


class PackedExperts(nn.Module):
    """A linear layer an expert; only the one in use is expanded, a chunk of rows at a time."""

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, columns) to (tokens, rows), through one expert."""
        return packed_linear(x, self.weight.expert(expert), None if self.bias is None else self.bias[expert])

    def several(self, x: Tensor, experts: Tensor | None) -> Tensor:
        """x: (n, tokens, columns) to (n, tokens, rows), through experts (n,), or each of them if None."""
        if experts is None:
            return torch.stack([self(index, x[index]) for index in range(self.weight.shape[0])])
        out = torch.bmm(x, self.weight.experts(experts).expanded().to(x.dtype).mT)
        return out if self.bias is None else out + self.bias[experts][:, None]


class PackedEmbedding(nn.Module):
    """Token embeddings that stay packed; also the head where that is tied."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, hidden)."""
        rows = self.weight.rows(tokens.flatten()).dequantize(self.dtype)
        return rows.view(*tokens.shape, -1)

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return packed_linear(x, self.weight, None)


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias without ever holding the whole matrix expanded."""
    parts = [F.linear(x, weight.rows(chunk).expanded().to(x.dtype)) for chunk in weight.chunks()]
    out = torch.cat(parts, dim=-1)
    return out if bias is None else out + bias
