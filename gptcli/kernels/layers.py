"""Modules that multiply with the compiled kernels, on the CPU in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from gptcli.gguf.blocks import TWICE_E2M1
from gptcli.kernels.bindings import Arithmetic, Matrix
from gptcli.kernels.tensors import FLOATS, GROUP, Library, fits
from gptcli.quant.affine import AffineWeight, unpacked
from gptcli.quant.codebook import CodebookWeight
from gptcli.quant.dense import DenseWeight, narrowed
from gptcli.quant.mxfp4 import Mxfp4Weight
from gptcli.quant.super_block import SuperBlockWeight
from gptcli.quant.weight import StoredWeight

_NO_EXPONENT = 255  # means NaN


def can_compile(weight: StoredWeight) -> bool:
    """Whether the kernels can multiply with a weight in its format."""
    match weight:
        case DenseWeight():
            return True
        case AffineWeight(bits=4 | 8, scales=scales, biases=biases):
            return weight.shape[-1] // scales.shape[-1] % GROUP == 0 and scales.dtype == biases.dtype in FLOATS
        case AffineWeight(bits=5, scales=scales, biases=biases):
            halves = scales.dtype == biases.dtype == torch.float16
            return halves and weight.shape[-1] == scales.shape[-1] * GROUP
        case SuperBlockWeight():
            return True
        case CodebookWeight():
            return fits(weight.shape[-1], "looked_up")
        case Mxfp4Weight(exponents=exponents):
            return fits(weight.shape[-1], "looked_up_wide") and int(exponents.max()) < _NO_EXPONENT
    return False


def _matrix(library: Library, weight: StoredWeight) -> Matrix:
    match weight:
        case AffineWeight(packed, scales, biases, 5 as bits):
            q = unpacked(packed, bits).to(torch.uint8)
            if fits(q.shape[-1], "centred") and biases.equal(scales * -16):
                return library.quants(q, bits, "centred", scales)
            return library.quants(q, bits, "halves", scales, biases)
        case SuperBlockWeight(_, scales, minima, factors, minimum_factors, bits):
            if minima is None:
                return library.quants(weight.quants(), bits, "nested_centred", factors, None, scales)
            return library.quants(weight.quants(), bits, "nested", factors, minimum_factors, scales, minima)
        case CodebookWeight(packed, scales, codes):
            return library.quants(unpacked(packed, 4), 4, "looked_up", scales, codes=codes)
        case Mxfp4Weight(packed, exponents):
            scales = torch.ldexp(torch.ones(exponents.shape), exponents.int() - 128).bfloat16()
            return library.quants(unpacked(packed, 4), 4, "looked_up_wide", scales, codes=TWICE_E2M1)
        case AffineWeight(packed, scales, biases, bits):
            scales, biases = _halves(torch.stack([scales, biases]))
            return library.affine(packed.contiguous(), scales, biases, bits)
        case DenseWeight(values):
            values = narrowed(values.contiguous())
            return library.coded(values) or library.dense(values)
    raise AssertionError(weight)


def _halves(constants: Tensor) -> Tensor:
    """The same numbers in fp16 if that is exact, as it is for GPTQ (fp32) and MLX (bf16); otherwise as they are."""
    halves = constants.half()
    return halves if halves.float().equal(constants.float()) else constants


class CompiledLinear(nn.Module):
    """A linear layer. Of a packed weight, only the kernels' copy stays in memory.

    arithmetic: the wanted one; as attribute, the one that weights and processor allow.
    """

    def __init__(
        self, library: Library, weight: StoredWeight, bias: nn.Parameter | None, arithmetic: Arithmetic
    ) -> None:
        super().__init__()
        self.matrix = _matrix(library, weight)
        self.arithmetic = library.set_arithmetic(self.matrix, arithmetic)
        self.bias = bias
        self._library = library

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        return self._library.linear(self.matrix, x, self.bias)


class JoinedLinear(nn.Module):
    """A linear layer whose rows are stored in several forms, one after the other. arithmetic: see `CompiledLinear`."""

    def __init__(self, parts: Sequence[CompiledLinear], bias: nn.Parameter | None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.arithmetic = max((part.arithmetic for part in parts), key=get_args(Arithmetic).index)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        out = torch.cat([part(x) for part in self.parts], -1)
        return out if self.bias is None else out + self.bias


class CompiledExperts(nn.Module):
    """A linear layer for each expert. arithmetic: see `CompiledLinear`."""

    def __init__(
        self, library: Library, weight: StoredWeight, bias: nn.Parameter | None, arithmetic: Arithmetic
    ) -> None:
        super().__init__()
        self.matrices = [_matrix(library, weight.expert(index)) for index in range(weight.shape[0])]
        effective = [library.set_arithmetic(matrix, arithmetic) for matrix in self.matrices]
        self.arithmetic = max(effective, key=get_args(Arithmetic).index)  # they may be stored differently
        self.bias = bias
        self._library = library

    def forward(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, columns) to (tokens, rows), through one expert."""
        return self._library.linear(self.matrices[expert], x, None if self.bias is None else self.bias[expert])


class CompiledEmbedding(nn.Module):
    """Token embeddings; also the head if it is tied."""

    def __init__(self, library: Library, weight: StoredWeight) -> None:
        super().__init__()
        self.matrix = _matrix(library, weight)  # in fp32: rounding in the head changes logits directly
        self._library = library

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, hidden)."""
        rows = [self._library.row(self.matrix, token) for token in tokens.flatten().tolist()]
        return torch.stack(rows).view(*tokens.shape, -1)

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return self._library.linear(self.matrix, x)
