"""Weights in fewer bits than their numbers take, and the modules that multiply with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.quant.weight import StoredWeight


@dataclass(frozen=True)
class PackedWeight(StoredWeight):
    """A weight in fewer bits than its numbers take."""

    def layout(self) -> tuple[Any, ...]:
        """A description that is equal for weights that can be joined."""
        values = [getattr(self, field.name) for field in fields(self)]
        described = [(value.shape[-1], value.dtype) if isinstance(value, Tensor) else value for value in values]
        return (type(self), *described)


def concat_rows(weights: Sequence[PackedWeight]) -> PackedWeight:
    """The rows of several weights of one layout."""
    return _joined(weights, lambda tensors: torch.cat(tensors, dim=-2))


def stack(weights: Sequence[PackedWeight]) -> PackedWeight:
    """A stack of matrices of one layout."""
    return _joined(weights, torch.stack)


def alike(weights: Sequence[PackedWeight]) -> bool:
    """Whether weights have one layout, so that they can be joined without being expanded."""
    return len({weight.layout() for weight in weights}) == 1


def _joined(weights: Sequence[PackedWeight], join: Callable[[list[Tensor]], Tensor]) -> PackedWeight:
    each = [weight.tensors() for weight in weights]
    joined: dict[str, Any] = {name: join([tensors[name] for tensors in each]) for name in each[0]}
    return replace(weights[0], **joined)


class PackedLinear(nn.Module):
    """A linear layer that keeps its weight packed and expands a chunk of rows at a time."""

    def __init__(self, weight: StoredWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        return packed_linear(x, self.weight, self.bias)


class PackedExperts(nn.Module):
    """A linear layer for each expert; expands the one in use, a chunk of rows at a time."""

    def __init__(self, weight: StoredWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, columns) to (tokens, rows), through one expert."""
        return packed_linear(x, self.weight.expert(expert), None if self.bias is None else self.bias[expert])

    def several(self, x: Tensor, experts: Tensor | None) -> Tensor:
        """x: (n, tokens, columns) to (n, tokens, rows), through experts (n,), or all of them if None."""
        if experts is None:
            return torch.stack([self(index, x[index]) for index in range(self.weight.shape[0])])
        out = torch.bmm(x, self.weight.experts(experts).expanded().to(x.dtype).mT)
        return out if self.bias is None else out + self.bias[experts][:, None]


class PackedEmbedding(nn.Module):
    """Token embeddings that stay packed; also the head if it is tied."""

    def __init__(self, weight: StoredWeight, dtype: torch.dtype) -> None:
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


def packed_linear(x: Tensor, weight: StoredWeight, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias, expanding a chunk of rows at a time. Gradients flow to x, and to no weight."""
    out = _product(x, weight)
    return out if bias is None else out + bias


def _product(x: Tensor, weight: StoredWeight) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        out: Tensor = _FrozenProduct.apply(x, weight)  # type: ignore[no-untyped-call]  # of torch
        return out
    products = [F.linear(x, weight.rows(chunk).expanded().to(x.dtype)) for chunk in weight.chunks()]
    return torch.cat(products, dim=-1)


class _FrozenProduct(torch.autograd.Function):
    """x @ weight.T. Expands the weight again for the gradient: expanded weights of all layers would fill the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: StoredWeight) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        ctx.weight, ctx.dtype = weight, x.dtype
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """gradient: (..., rows) to (..., columns)."""
        weight, flat = ctx.weight, gradient.flatten(0, -2)
        total = flat.new_zeros(flat.shape[0], weight.shape[1])
        for chunk in weight.chunks():
            total.addmm_(flat[:, chunk], weight.rows(chunk).expanded().to(flat.dtype))
        return total.view(*gradient.shape[:-1], -1).to(ctx.dtype), None
