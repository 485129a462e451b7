"""Modules whose weights the compiled kernels multiply, on the CPU and in fp32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptcli.kernels.functions import Matrix
from gptcli.kernels.native import FLOATS, GROUP, Library
from gptcli.quant.affine import AffineWeight
from gptcli.quant.half import HalfWeight
from gptcli.quant.packed import PackedWeight


def can_compile(weight: PackedWeight, integers: bool) -> bool:
    """Whether the kernels know a weight's format. integers: whether they may round activations to 8 bits for it."""
    match weight:
        case HalfWeight():
            return True
        case AffineWeight(bits=4 | 8, scales=scales, biases=biases) if integers:
            return weight.shape[-1] // scales.shape[-1] % GROUP == 0 and scales.dtype == biases.dtype in FLOATS
    return False


def _matrix(library: Library, weight: PackedWeight) -> Matrix:
    match weight:
        case AffineWeight(packed, scales, biases, bits):
            return library.affine(packed.contiguous(), scales.contiguous(), biases.contiguous(), bits)
        case HalfWeight(values):
            return library.dense(values.contiguous())
    raise AssertionError(weight)


class CompiledLinear(nn.Module):
    """A linear layer in the kernels' hands. Packed weights are kept in their layout alone.

    fine: whether activations are rounded to two terms of 8 bits for packed weights, instead of one.
    """

    def __init__(
        self, library: Library, weight: PackedWeight, bias: nn.Parameter | None, *, fine: bool = False
    ) -> None:
        super().__init__()
        self.matrix = _matrix(library, weight)
        self.bias = bias
        self._library, self._fine = library, fine

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        return self._library.linear(self.matrix, x, self.bias, fine=self._fine)


class CompiledExperts(nn.Module):
    """A linear layer an expert, in the kernels' hands."""

    def __init__(self, library: Library, weight: PackedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrices = [_matrix(library, weight.expert(index)) for index in range(weight.shape[0])]
        self.bias = bias
        self._library = library

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, columns) to (tokens, rows), through one expert."""
        return self._library.linear(self.matrices[expert], x, None if self.bias is None else self.bias[expert])


class CompiledEmbedding(nn.Module):
    """Token embeddings in the kernels' hands; also the head where that is tied."""

    def __init__(self, library: Library, weight: PackedWeight) -> None:
        super().__init__()
        self.matrix = _matrix(library, weight)
        self._library = library

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, hidden)."""
        rows = [self._library.row(self.matrix, token) for token in tokens.flatten().tolist()]
        return torch.stack(rows).view(*tokens.shape, -1)

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return self._library.linear(self.matrix, x, fine=True)
