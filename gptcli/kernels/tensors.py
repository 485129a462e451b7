"""The compiled kernels for tensors. `library()` is None where they were not built; then torch does it all.

Tensors are fp32, contiguous and on the CPU unless a promise says otherwise.
"""

from __future__ import annotations

from ctypes import byref
from functools import cache

import torch
from torch import Tensor

from gptcli.kernels.bindings import ACTIVATIONS, Attention, Functions, Matrix

FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # the numbers of dtypes in kernels.h
_BITS = (4, 8)
GROUP = 32  # columns whose activations share a scale: groups of affine weights are multiples of it


class Library(Functions):
    """The compiled functions, called with tensors."""

    def dense(self, weight: Tensor) -> Matrix:
        """weight: (rows, columns) in fp32, fp16 or bf16; read in place, at any alignment of its elements."""
        rows, columns = weight.shape
        assert weight.is_contiguous() and weight.device.type == "cpu"
        handle = self._c.gptcli_matrix_dense(FLOATS[weight.dtype], weight.data_ptr(), rows, columns)
        return self._matrix(handle, rows, columns, weight)

    def coded(self, weight: Tensor) -> Matrix | None:
        """A copy of a weight in fewer bytes, bit for bit: fp32 in 28 bits, bf16 in 12; nothing is kept of the tensor.

        weight: (rows, columns) in fp32, fp16 or bf16. None where that gains nothing, as for fp16, for weights whose
        exponents lie far apart, and on processors that decode more slowly than they read.
        """
        rows, columns = weight.shape
        assert weight.is_contiguous() and weight.device.type == "cpu"
        handle = self._c.gptcli_matrix_coded(FLOATS[weight.dtype], weight.data_ptr(), rows, columns)
        return None if handle is None else self._matrix(handle, rows, columns, None)

    def affine(self, packed: Tensor, scales: Tensor, biases: Tensor, bits: int, *, integers: bool = True) -> Matrix:
        """A copy of `quant.affine.AffineWeight` for the kernels; nothing is kept of the tensors.

        packed: (rows, columns * bits / 8) uint8 of 4 or 8 bits; scales and biases: (rows, columns / group) in fp32,
        fp16 or bf16; group: a multiple of 32. integers: whether activations are rounded to 8 bits for it.
        """
        rows, groups = scales.shape
        columns = packed.shape[1] * 8 // bits
        assert bits in _BITS and columns % groups == 0 and columns // groups % GROUP == 0
        assert packed.shape[0] == rows and biases.shape == scales.shape and biases.dtype == scales.dtype
        assert all(t.is_contiguous() and t.device.type == "cpu" for t in (packed, scales, biases))
        handle = self._c.gptcli_matrix_affine(
            packed.data_ptr(), scales.data_ptr(), biases.data_ptr(), FLOATS[scales.dtype],
            rows, columns, bits, columns // groups,
        )  # fmt: skip
        matrix = self._matrix(handle, rows, columns, None)
        if integers:
            self._c.gptcli_matrix_round_activations(handle)
        return matrix

    def row(self, matrix: Matrix, row: int) -> Tensor:
        """One row in fp32, (columns,): an embedding."""
        assert 0 <= row < matrix.rows
        out = torch.empty(matrix.columns)
        self._c.gptcli_matrix_row(matrix.handle, row, out.data_ptr())
        return out

    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ W.T + bias: (..., columns) to (..., rows).

        Affine matrices for integers see x in signed 8 bits, a scale for 32 columns, and integer products are exact. All
        others multiply and add in fp32.
        """
        x = _plain(x)
        assert x.shape[-1] == matrix.columns and (bias is None or bias.shape == (matrix.rows,))
        out = torch.empty(*x.shape[:-1], matrix.rows)
        tokens = x.numel() // matrix.columns
        if self._c.gptcli_linear(matrix.handle, x.data_ptr(), tokens, _address(bias), out.data_ptr()) != 0:
            raise MemoryError
        return out

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        length: int,
        scale: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """One token's softmax(scale q k) v over positions start to start + length - 1: (heads, head_dim).

        queries: (heads, head_dim); keys and values: (kv_heads, capacity, head_dim), contiguous in each head; sinks:
        (heads,).
        """
        queries = _plain(queries)
        (heads, head_dim), (kv_heads, capacity, _) = queries.shape, keys.shape
        assert keys.stride() == values.stride() and keys.stride()[1:] == (head_dim, 1) and keys.shape == values.shape
        assert keys.dtype == values.dtype == torch.float32 and heads % kv_heads == 0
        assert 0 <= start and 0 < length and start + length <= capacity and (sinks is None or sinks.shape == (heads,))
        out = torch.empty(heads, head_dim)
        attention = Attention(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), _address(sinks), out.data_ptr(),
            heads, kv_heads, head_dim, keys.stride(0), start, length, scale, softcap or 0.0,
        )  # fmt: skip
        if self._c.gptcli_attention(byref(attention)) != 0:
            raise MemoryError
        return out

    def rms_norm(self, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
        x = _plain(x)
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.gptcli_rms_norm(x.data_ptr(), _address(weight), epsilon, x.numel() // size, size, out.data_ptr())
        return out

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
        x = _plain(x)
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.gptcli_layer_norm(
            x.data_ptr(), _address(weight), _address(bias), epsilon, x.numel() // size, size, out.data_ptr()
        )
        return out

    def rotate_(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """What `model.rope.rotate` does, in place, for one position: heads (heads, head_dim), cos and sin (dim,)."""
        assert heads.is_contiguous() and heads.dtype == torch.float32
        count, head_dim = heads.shape
        self._c.gptcli_rope(heads.data_ptr(), _address(cos), _address(sin), count, head_dim, cos.numel())

    def activate(self, activation: str, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """activation(gate) * up, elementwise; the names are `model.config.Activation`'s."""
        gate, out = _plain(gate), torch.empty_like(gate)
        assert up is None or up.shape == gate.shape
        self._c.gptcli_activate(ACTIVATIONS[activation], gate.data_ptr(), _address(up), gate.numel(), out.data_ptr())
        return out

    def exp(self, x: Tensor) -> Tensor:
        """e^x, as the other functions compute it."""
        x = _plain(x)
        out = torch.empty_like(x)
        self._c.gptcli_exp(x.data_ptr(), x.numel(), out.data_ptr())
        return out


def _plain(x: Tensor) -> Tensor:
    assert x.dtype == torch.float32 and x.device.type == "cpu"
    return x.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    return tensor.data_ptr()


@cache
def library() -> Library | None:
    """The kernels, or None, as `functions` says of its own."""
    return Library.built()
