"""ggml's blocks as packed weights with the same values. Source: ggml-common.h and ggml-quants.c of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gptcli.gguf.blocks import BLOCKS, IQ4_NL
from gptcli.quant.affine import AffineWeight, pack_nibbles
from gptcli.quant.codebook import CodebookWeight
from gptcli.quant.mxfp4 import Mxfp4Weight
from gptcli.quant.packed import PackedWeight
from gptcli.quant.super_block import SuperBlockWeight, pack_bits


def packed_from_ggml(type_name: str, data: Tensor) -> PackedWeight | None:
    """A weight (rows, columns), or a stack of them, from its blocks; None for types that have no packed form.

    data: (..., bytes of a row) uint8. Also None if a factor is infinite or NaN: packed forms would give other products.
    """
    if type_name not in _READERS:
        return None
    weight = _READERS[type_name](data.view(*data.shape[:-1], -1, BLOCKS[type_name].size))
    numbers = [tensor for tensor in weight.tensors().values() if tensor.is_floating_point()]
    return weight if all(tensor.isfinite().all() for tensor in numbers) else None


def _halves(data: Tensor, begin: int) -> Tensor:
    """The fp16 number at a byte of each block: (rows, blocks)."""
    return data[..., begin : begin + 2].contiguous().view(torch.float16).squeeze(-1)


def _by_halves(data: Tensor) -> Tensor:
    """(..., n) bytes to (..., 2 * n) of 4 bits: all lower halves, then all upper ones."""
    return torch.cat([data & 15, data >> 4], dim=-1)


def _nibbles(data: Tensor) -> Tensor:
    return pack_nibbles(_by_halves(data)).flatten(-2)


def _q4_0(data: Tensor) -> PackedWeight:
    scales = _halves(data, 0)
    return AffineWeight(_nibbles(data[..., 2:]), scales, scales * -8, bits=4)


def _q4_1(data: Tensor) -> PackedWeight:
    return AffineWeight(_nibbles(data[..., 4:]), _halves(data, 0), _halves(data, 2), bits=4)


def _five_bits(data: Tensor) -> Tensor:
    """A stream of 5 bits from four bytes of upper bits, one per column, and 16 of lower halves."""
    upper = data[..., :4, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return pack_bits(_by_halves(data[..., 4:]) | upper.flatten(-2) << 4, 5).flatten(-2)


def _q5_0(data: Tensor) -> PackedWeight:
    scales = _halves(data, 0)
    return AffineWeight(_five_bits(data[..., 2:]), scales, scales * -16, bits=5)


def _q5_1(data: Tensor) -> PackedWeight:
    return AffineWeight(_five_bits(data[..., 4:]), _halves(data, 0), _halves(data, 2), bits=5)


def _q8_0(data: Tensor) -> PackedWeight:
    scales = _halves(data, 0)
    return AffineWeight((data[..., 2:] ^ 128).flatten(-2), scales, scales * -128, bits=8)


def _iq4_nl(data: Tensor) -> PackedWeight:
    return CodebookWeight(_nibbles(data[..., 2:]), _halves(data, 0), IQ4_NL)


def _mxfp4(data: Tensor) -> PackedWeight:
    return Mxfp4Weight(_nibbles(data[..., 1:]), data[..., 0].contiguous())


def _six_bit_pairs(data: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima in 12 bytes: (rows, blocks * 8) each."""
    first, second, third = data[..., :4], data[..., 4:8], data[..., 8:]
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1)
    minima = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1)
    return scales.flatten(-2), minima.flatten(-2)


def _by_64(data: Tensor) -> Tensor:
    """128 bytes, of which 32 hold 64 columns: (..., 256) of 4 bits."""
    return _by_halves(data.reshape(*data.shape[:-1], 4, 32)).flatten(-2)


def _q4_k(data: Tensor) -> PackedWeight:
    packed = pack_nibbles(_by_64(data[..., 16:])).flatten(-2)
    scales, minima = _six_bit_pairs(data[..., 4:16])
    return SuperBlockWeight(packed, scales, minima, _halves(data, 0), _halves(data, 2), bits=4)


def _q5_k(data: Tensor) -> PackedWeight:
    # Bit i of byte c is the upper bit of column 32 * i + c.
    upper = data[..., None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    packed = pack_bits(_by_64(data[..., 48:]) | upper.flatten(-2) << 4, 5).flatten(-2)
    scales, minima = _six_bit_pairs(data[..., 4:16])
    return SuperBlockWeight(packed, scales, minima, _halves(data, 0), _halves(data, 2), bits=5)


def _q6_k(data: Tensor) -> PackedWeight:
    # Each half of a block has 64 bytes of lower bits, for 64 columns and then 64 more, and 32 bytes of upper ones.
    outer = data.shape[:-1]
    lower = _by_halves(data[..., :128].reshape(*outer, 2, 64)).flatten(-2)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    upper = data[..., 128:192].reshape(*outer, 2, 1, 32) >> shifts & 3
    packed = pack_bits(lower | upper.flatten(-3) << 4, 6).flatten(-2)
    scales = data[..., 192:208].contiguous().view(torch.int8).flatten(-2)
    return SuperBlockWeight(packed, scales, None, _halves(data, 208), None, bits=6)


_READERS: dict[str, Callable[[Tensor], PackedWeight]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
