"""ggml's blocks as weights: packed where a form of ours has exactly their values, else as the file has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptcli.gguf.blocks import BLOCKS, decoded, scales_and_minima
from gptcli.quant.affine import AffineWeight, pack_nibbles
from gptcli.quant.mxfp4 import Mxfp4Weight
from gptcli.quant.packed import PackedWeight

GGML_TYPES = frozenset(BLOCKS) - {"F32", "F16", "BF16"}  # of blocks


@dataclass(frozen=True)
class GgmlWeight(PackedWeight):
    """A matrix of (rows, columns), or a stack of them, as blocks of a type.

    data: (rows, bytes) uint8.
    """

    data: Tensor
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        block = BLOCKS[self.kind]
        return *self.data.shape[:-1], self.data.shape[-1] // block.size * block.columns

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        return torch.from_numpy(decoded(self.kind, self.data.cpu().numpy())).to(self.data.device)


def ggml_weight(kind: str, data: Tensor) -> Tensor | PackedWeight:
    """A weight of blocks of a type. data: (..., bytes of a row) uint8.

    Packed, it has the values of its blocks to the bit; only NaN and infinity are left to `GgmlWeight`.
    """
    if data.dim() == 1:
        return torch.from_numpy(decoded(kind, data.numpy()))
    fields = _fields(kind, data)
    if kind == "MXFP4":
        return Mxfp4Weight(_neighbours(fields["q"]).flatten(-2), fields["e"].squeeze(-1))
    affine = _affine(kind, fields)
    if affine is None or not affine.scales.isfinite().all() or not affine.biases.isfinite().all():
        return GgmlWeight(data, kind)
    return affine


def _fields(kind: str, data: Tensor) -> dict[str, Tensor]:
    """The fields of all blocks by name: (..., blocks, count)."""
    block = BLOCKS[kind]
    blocks = data.view(*data.shape[:-1], -1, block.size)
    dtypes = {"u1": torch.uint8, "i1": torch.int8, "f2": torch.float16, "u2": torch.uint16, "u4": torch.uint32}
    result, at = {}, 0
    for name, dtype, count in block.fields:
        size = int(dtype[-1]) * count
        result[name] = blocks[..., at : at + size].contiguous().view(dtypes[dtype])
        at += size
    return result


def _affine(kind: str, fields: dict[str, Any]) -> AffineWeight | None:
    """w = scale * q + bias with a scale for each 32 columns, for types that are of this form."""
    match kind:
        case "Q4_0":
            scales = fields["d"]
            return _joined(_neighbours(fields["q"]), scales, scales * -8, 4)
        case "Q4_1":
            return _joined(_neighbours(fields["q"]), fields["d"], fields["m"], 4)
        case "Q8_0":
            return _joined(fields["q"].view(torch.uint8) ^ 0x80, fields["d"], fields["d"] * -128, 8)
        case "Q5_0" | "Q5_1":
            # Kernels multiply with 4 or 8 bits.
            high = fields["high"].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
            q = _in_order(fields["q"]) | high.flatten(-2) << 4
            if kind == "Q5_0":  # with 128 for 0 the kernels need no biases
                return _joined(q + 112, fields["d"], fields["d"] * -128, 8)
            return _joined(q, fields["d"], fields["m"], 8)
        case "Q4_K" | "Q5_K":
            return _of_super_blocks(kind, fields)
    return None


def _of_super_blocks(kind: str, fields: dict[str, Tensor]) -> AffineWeight:
    """Eight groups of 32 columns, with scales and minima of 6 bits times those of the block."""
    outer = fields["scales"].shape[:-1]
    parts = scales_and_minima(fields["scales"].view(-1, 12).numpy())
    scales, minima = (torch.from_numpy(part).view(*outer, 8).float() for part in parts)
    scales, biases = fields["d"].float() * scales, -(fields["dmin"].float() * minima)
    pairs = fields["q"].view(*outer, 4, 32)
    q = torch.cat([pairs & 15, pairs >> 4], dim=-1).view(*outer, 256)
    if kind == "Q4_K":
        return _joined(pack_nibbles(q), scales, biases, 4)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = (fields["high"].unsqueeze(-2) >> shifts & 1).view(*outer, 256)
    return _joined(q | high << 4, scales, biases, 8)


def _joined(q: Tensor, scales: Tensor, biases: Tensor, bits: int) -> AffineWeight:
    """Blocks (..., blocks, n) as rows."""
    return AffineWeight(q.flatten(-2).contiguous(), scales.flatten(-2), biases.flatten(-2), bits)


def _in_order(q: Tensor) -> Tensor:
    """Bytes (..., 16), whose low halves are columns 0 to 15 and high ones 16 to 31, to a column per byte."""
    return torch.cat([q & 15, q >> 4], dim=-1)


def _neighbours(q: Tensor) -> Tensor:
    """The same bytes with neighbouring columns in each, as our packed weights have them."""
    return pack_nibbles(_in_order(q))
