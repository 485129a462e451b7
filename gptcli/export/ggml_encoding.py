"""Weights as ggml's blocks with the same values: packed ones where ggml has their form, else floats."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.export.ggml_rounding import rounded
from gptcli.gguf.writer import Blocks
from gptcli.quant.affine import AffineWeight, unpacked
from gptcli.quant.dense import narrowed
from gptcli.quant.ggml import GgmlWeight
from gptcli.quant.mxfp4 import Mxfp4Weight
from gptcli.quant.packed import PackedWeight

_BLOCK = 32  # columns
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def exact_blocks(value: Tensor | PackedWeight) -> Blocks:
    """A weight without rounding: packed if ggml has blocks of its form, else the narrowest exact floats.

    The values of packed weights are computed in fp32, as everywhere.
    """
    if isinstance(value, PackedWeight):
        return _packed(value) or float_blocks(narrowed(value.dequantize(torch.float32)))
    return float_blocks(value)


def float_blocks(value: Tensor) -> Blocks:
    """Floats in their own precision; fp64 becomes fp32."""
    value = value if value.dtype in _FLOATS else value.float()
    return _blocks(_FLOATS[value.dtype], value.view(torch.int16) if value.element_size() == 2 else value)


def rounded_blocks(value: Tensor, kind: str) -> Blocks:
    """The nearest values in blocks of a type that `rounded` knows. value: (..., columns)."""
    return _blocks(kind, rounded(value, kind))


def _blocks(kind: str, data: Tensor) -> Blocks:
    return Blocks(kind, data.contiguous().numpy())


def _packed(weight: PackedWeight) -> Blocks | None:
    match weight:
        case GgmlWeight(data=data, kind=kind):
            return _blocks(kind, data)
        case Mxfp4Weight(packed=packed, exponents=exponents):
            return _blocks("MXFP4", _joined(exponents[..., None], _nibbles(packed)))
        case AffineWeight(bits=4 | 8):
            return _affine(weight)
    return None


def _affine(weight: AffineWeight) -> Blocks | None:
    if (pair := _halves(weight)) is None:
        return None
    scales, biases = pair
    centred = biases.equal(scales * -(1 << weight.bits - 1))
    if weight.bits == 8:
        quants = (weight.packed ^ 128).view(*scales.shape, _BLOCK)
        return _blocks("Q8_0", _joined(_bytes(scales), quants)) if centred else None
    constants = [_bytes(scales)] if centred else [_bytes(scales), _bytes(biases)]
    return _blocks("Q4_0" if centred else "Q4_1", _joined(*constants, _nibbles(weight.packed)))


def _halves(weight: AffineWeight) -> tuple[Tensor, Tensor] | None:
    """Scales and biases for each block; None unless they are exact in fp16 and groups are whole blocks."""
    columns = weight.shape[-1]
    per_group = columns // weight.scales.shape[-1] // _BLOCK
    if columns % _BLOCK or not per_group:
        return None
    pair = weight.scales.half(), weight.biases.half()
    exact = all(
        half.float().equal(full.float()) for half, full in zip(pair, (weight.scales, weight.biases), strict=True)
    )
    scales, biases = (each.repeat_interleave(per_group, -1) for each in pair)
    return (scales, biases) if exact else None


def _nibbles(packed: Tensor) -> Tensor:
    """Bytes (..., columns / 2) that pair neighbours to bytes (..., blocks, 16) that pair columns 16 apart."""
    columns = unpacked(packed, 4).view(*packed.shape[:-1], -1, 2, _BLOCK // 2)
    return columns[..., 0, :] | columns[..., 1, :] << 4


def _bytes(halves: Tensor) -> Tensor:
    return halves.contiguous()[..., None].view(torch.uint8)


def _joined(*parts: Tensor) -> Tensor:
    """Blocks (..., blocks, bytes) of these bytes."""
    return torch.cat(parts, dim=-1)
