"""Affine quantization: groups of columns share a scale and a bias, w = scale * q + bias.

The layout is MLX's: each row a stream of bits, the first column in the lowest ones, stored as little-endian words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHUNK = 1 << 18  # weights expanded at once: what a core's cache holds


@dataclass(frozen=True)
class AffineWeight:
    """A matrix of (rows, columns) in `bits` bits.

    packed: (rows, columns * bits / 8) uint8; scales and biases: (rows, groups).
    """

    packed: Tensor
    scales: Tensor
    biases: Tensor
    bits: int

    @classmethod
    def quantize(cls, weight: Tensor, bits: int, group_size: int = 32) -> Self:
        """The nearest values to a (rows, columns) matrix, each group spread from its least to its greatest."""
        rows, columns = weight.shape
        step = max(1, _CHUNK // columns)
        if rows > step:
            return cls.concat([cls.quantize(part, bits, group_size) for part in torch.split(weight, step)])
        groups = weight.float().view(rows, columns // group_size, group_size)
        low, high = groups.amin(-1), groups.amax(-1)
        biases = low.half()
        scales = ((high - biases.float()) / (2**bits - 1)).half()
        # A constant group has scale 0; any divisor will do, for q is 0 then.
        divisor = torch.where(scales == 0, 1, scales).float()
        levels = (groups - biases.float()[..., None]) / divisor[..., None]
        q = levels.round_().clamp_(0, 2**bits - 1).to(torch.uint8).view(rows, columns)
        if bits == 4:
            q = q[:, ::2] | (q[:, 1::2] << 4)
        return cls(q, scales, biases, bits)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.packed.shape[0], self.packed.shape[1] * 8 // self.bits

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The matrix itself, computed in fp32 and rounded once to `dtype`."""
        out = torch.empty(self.shape, dtype=dtype, device=self.packed.device)
        for chunk in self.chunks():
            out[chunk] = self.rows(chunk)._expanded()
        return out

    def chunks(self) -> Iterator[slice]:
        """Ranges of rows, each small enough to stay in a core's cache when expanded."""
        rows, columns = self.shape
        step = max(1, _CHUNK // columns)
        return (slice(start, start + step) for start in range(0, rows, step))

    def _expanded(self) -> Tensor:
        q = _unpacked(self.packed, self.bits)
        rows, groups = self.scales.shape
        q = q.view(rows, groups, -1).float()
        return torch.addcmul(self.biases.float()[..., None], q, self.scales.float()[..., None]).view(rows, -1)

    def rows(self, index: slice | Tensor) -> Self:
        """The chosen rows, still packed."""
        return replace(self, packed=self.packed[index], scales=self.scales[index], biases=self.biases[index])

    def to(self, device: torch.device) -> Self:
        """The same weight on another device."""
        return replace(
            self, packed=self.packed.to(device), scales=self.scales.to(device), biases=self.biases.to(device)
        )

    @classmethod
    def concat(cls, parts: list[Self]) -> Self:
        """Weights of equal bits and group size joined along their rows."""
        return replace(
            parts[0],
            packed=torch.cat([part.packed for part in parts]),
            scales=torch.cat([part.scales for part in parts]),
            biases=torch.cat([part.biases for part in parts]),
        )


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """(rows, bytes) to (rows, columns), a byte each; columns of 3, 5 and 6 bits may lie across two bytes."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    last = packed.shape[1] - 1
    places = torch.arange(packed.shape[1] * 8 // bits, device=packed.device) * bits
    low, high = packed[:, places // 8].short(), packed[:, (places // 8 + 1).clamp(max=last)].short()
    q: Tensor = ((low | high << 8) >> (places % 8)) & (2**bits - 1)
    return q


class AffineLinear(nn.Module):
    """A linear layer that keeps its weight packed and expands it a chunk of rows at a time."""

    def __init__(self, weight: AffineWeight) -> None:
        super().__init__()
        self.weight = weight
        self.bias: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        return affine_linear(x, self.weight, self.bias)


class AffineEmbedding(nn.Module):
    """Token embeddings that stay packed; also the head where that is tied."""

    def __init__(self, weight: AffineWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, hidden)."""
        rows = self.weight.rows(tokens.flatten()).dequantize(self.dtype)
        return rows.view(*tokens.shape, -1)

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return affine_linear(x, self.weight, None)


def affine_linear(x: Tensor, weight: AffineWeight, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias without ever holding the whole matrix expanded."""
    out = torch.cat([F.linear(x, weight.rows(chunk).dequantize(x.dtype)) for chunk in weight.chunks()], dim=-1)
    return out if bias is None else out + bias
