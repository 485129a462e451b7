"""The compiled functions, called with tensors: fp32, contiguous and on the CPU unless a docstring says otherwise."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from gptcli.kernels.bindings import Functions, Matrix

FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # kernels.h's Kind of each dtype
GROUP = 32  # kernels.h's SEGMENT: groups of affine weights are multiples of it

# In the order of kernels.h's Constants.
Constants = Literal["singles", "halves", "centred", "nested", "nested_centred", "looked_up", "looked_up_wide"]


def fits(columns: int, constants: Constants) -> bool:
    """Whether the kernels' layout can hold rows of so many columns."""
    if constants.startswith("nested"):
        return columns % 256 == 0
    return columns % (GROUP if constants == "halves" else 2 * GROUP) == 0


class Library(Functions):
    """The compiled functions, called with tensors."""

    def dense(self, weight: Tensor) -> Matrix:
        """A matrix that reads a weight in place. weight: (rows, columns) in fp32, fp16 or bf16."""
        rows, columns = weight.shape
        assert weight.is_contiguous() and weight.device.type == "cpu"
        handle = self._c.gptcli_matrix_dense(FLOATS[weight.dtype], weight.data_ptr(), rows, columns)
        return self._matrix(handle, rows, columns, weight)

    def coded(self, weight: Tensor) -> Matrix | None:
        """A copy of a weight in fewer bytes, bit for bit: fp32 in 28 bits, bf16 in 12.

        weight: (rows, columns) in fp32, fp16 or bf16. None if that gains nothing: for fp16, for weights whose
        exponents are far apart, and on processors that decode more slowly than they read.
        """
        rows, columns = weight.shape
        assert weight.is_contiguous() and weight.device.type == "cpu"
        handle = self._c.gptcli_matrix_coded(FLOATS[weight.dtype], weight.data_ptr(), rows, columns)
        return None if handle is None else self._matrix(handle, rows, columns, None)

    def affine(self, packed: Tensor, scales: Tensor, biases: Tensor, bits: int) -> Matrix:
        """A copy of a `quant.affine.AffineWeight`, repacked.

        packed: (rows, columns * bits / 8) uint8 of 4 or 8 bits; scales and biases: (rows, columns / group) in fp32,
        fp16 or bf16; group: a multiple of 32.
        """
        rows, groups = scales.shape
        columns = packed.shape[1] * 8 // bits
        assert bits in (4, 8) and columns % groups == 0 and columns // groups % GROUP == 0
        assert packed.shape[0] == rows and biases.shape == scales.shape and biases.dtype == scales.dtype
        assert all(t.is_contiguous() and t.device.type == "cpu" for t in (packed, scales, biases))
        handle = self._c.gptcli_matrix_affine(
            packed.data_ptr(), scales.data_ptr(), biases.data_ptr(), FLOATS[scales.dtype],
            rows, columns, bits, columns // groups,
        )  # fmt: skip
        return self._matrix(handle, rows, columns, None)

    def quants(
        self,
        q: Tensor,
        bits: int,
        constants: Constants,
        factors: Tensor,
        bias_factors: Tensor | None = None,
        scales: Tensor | None = None,
        biases: Tensor | None = None,
        codes: Sequence[int] = (),
    ) -> Matrix:
        """A copy of a weight of 4, 5 or 6 bits, repacked; see gptcli_matrix_quants in kernels.h for the shapes.

        q: (rows, columns) uint8, a byte a weight, whose columns `fits` allows.
        """
        rows, columns = q.shape
        assert fits(columns, constants) and len(codes) in (0, 16)
        tensors = [None if t is None else t.contiguous() for t in (q, factors, bias_factors, scales, biases)]
        addresses = [None if t is None else t.data_ptr() for t in tensors]
        shifted = (ctypes.c_uint8 * 16)(*(code + 128 for code in codes)) if codes else None
        handle = self._c.gptcli_matrix_quants(
            *addresses, ctypes.addressof(shifted) if shifted else None, rows, columns, bits,
            get_args(Constants).index(constants),
        )  # fmt: skip
        return self._matrix(handle, rows, columns, None)

    def row(self, matrix: Matrix, row: int) -> Tensor:
        """One row in fp32, (columns,): an embedding."""
        assert 0 <= row < matrix.rows
        out = torch.empty(matrix.columns)
        self._c.gptcli_matrix_row(matrix.handle, row, out.data_ptr())
        return out

    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None, *, rounds: bool = False) -> Tensor:
        """x @ W.T + bias: (..., columns) to (..., rows).

        In int8, x is rounded to signed 8 bits with a scale per 32 columns, and products are exact. In bf16, weights and
        x are rounded to that for more than 16 tokens. All else multiplies and adds in fp32. If it `rounds`, x has 12
        to 16 bits for packed weights and up to 32 tokens. Raises MemoryError.
        """
        x = contiguous(x)
        assert x.shape[-1] == matrix.columns and (bias is None or bias.shape == (matrix.rows,))
        out = torch.empty(*x.shape[:-1], matrix.rows)
        tokens = x.numel() // matrix.columns
        if self._c.gptcli_linear(matrix.handle, x.data_ptr(), tokens, rounds, address(bias), out.data_ptr()) != 0:
            raise MemoryError
        return out


def contiguous(x: Tensor) -> Tensor:
    """The same fp32 numbers, contiguous."""
    assert x.dtype == torch.float32 and x.device.type == "cpu"
    return x.contiguous()


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor's fp32 numbers."""
    if tensor is None:
        return None
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    return tensor.data_ptr()


@cache
def library() -> Library | None:
    """See `bindings.functions`."""
    return Library.built()
