"""Experimental: multiplies affine weights of 4 and 8 bits with torch's CUDA kernel "tinygemm", activations in bf16.

The kernel computes with scale * (q - 8) + zero, where q has 4 bits and scale and zero are bf16. An 8-bit weight is the
sum of two such terms: 16 * scale times its upper nibble, and scale times its lower one. The first product of each shape
is checked on the device. If the check fails, weights stay in their form, and `failure` tells why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.cuda.check import relative_difference
from gptcli.quant.affine import AffineWeight, unpacked
from gptcli.quant.packed import PackedWeight, packed_linear

_GROUPS = (256, 128, 64, 32)  # columns that may share a scale
_K_TILES = (8, 4, 2)  # of 16 columns each, that it loads at once
_FEW = 512  # with more rows of x, a dense product with the expanded weight is cheaper
_CHUNK = 1 << 24  # weights expanded at once
_TOLERANCE = 2.0**-6  # relative: a few times what rounding weights and sums to bf16 explains

Pack = Callable[[Tensor, int], Tensor]
Multiply = Callable[[Tensor, Tensor, int, Tensor], Tensor]


class Tinygemm:
    """The kernel on one device. used: whether it multiplies any weight. failure: why it was not used for some."""

    def __init__(
        self,
        pack: Pack = torch._convert_weight_to_int4pack,
        multiply: Multiply = torch._weight_int4pack_mm,
    ) -> None:
        self.used = False
        self.failure: str | None = None
        self._pack, self._multiply = pack, multiply
        self._trusted: dict[tuple[object, ...], bool] = {}

    def matrix(self, weight: PackedWeight, device: torch.device) -> TinygemmMatrix | None:
        """A weight in the kernel's layout; None if it has none for it, or fails the check."""
        if not isinstance(weight, AffineWeight) or not fits(weight):
            return None
        weight = weight.to(device)
        kind = weight.shape, weight.scales.shape, weight.bits
        if self._trusted.get(kind) is False:
            return None
        try:
            made = TinygemmMatrix(weight, self._pack, self._multiply)
            if kind not in self._trusted:
                self._trusted[kind] = self._is_right(made, weight)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._trusted[kind] = False
            self.failure = f"torch's int4 kernel does not run here: {str(error).splitlines()[0]}"
        self.used |= self._trusted[kind]
        return made if self._trusted[kind] else None

    def _is_right(self, made: TinygemmMatrix, weight: AffineWeight) -> bool:
        rows, columns = weight.shape
        x = torch.arange(2 * columns, device=weight.packed.device).mul(0.7).sin().view(2, -1).bfloat16()
        expected = packed_linear(x.float(), weight, None)
        for got in (made(x), F.linear(x, made.dense())):
            difference = relative_difference(got.float(), expected)
            if not difference <= _TOLERANCE:
                self.failure = (
                    f"torch's int4 kernel is off by {difference:.2g} of the size of a product "
                    f"({rows} x {columns}, {weight.bits} bits)"
                )
                return False
        return True


def fits(weight: AffineWeight) -> bool:
    """Whether the kernel has a layout for a weight."""
    if len(weight.shape) != 2 or weight.bits not in (4, 8):
        return False
    rows, columns = weight.shape
    return rows % 8 == 0 and columns // weight.scales.shape[1] % _GROUPS[-1] == 0


@dataclass(frozen=True)
class _Half:
    """A 4-bit matrix. tiles: (rows / 8, columns / 16 / k_tiles, 32, k_tiles / 2) int32, in the kernel's order;
    scales_and_zeros: (columns / group, rows, 2) bf16."""

    tiles: Tensor
    scales_and_zeros: Tensor

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        _, outer, _, pairs = self.tiles.shape
        return outer * pairs * 32 // len(self.scales_and_zeros)

    def rows(self, index: Tensor) -> Tensor:
        """The chosen rows, (n, columns) in bf16, each number rounded once."""
        # Each of a tile's 32 lanes has four bytes of a row, ordered by their upper and lower halves (v0 v1, v2 v3):
        # see matrix_to_m16n8k16_Bint4_layout in torch's int4mm.cu.
        outer, pairs = self.tiles.shape[1], self.tiles.shape[3]
        lanes = self.tiles.view(len(self.tiles), outer, 8, 4, pairs)[index // 8, :, index % 8]  # (n, outer, 4, pairs)
        q = unpacked(lanes.contiguous().view(torch.uint8), 4)  # (n, outer, 4, pairs * 8)
        q = q.view(-1, outer, 4, pairs, 2, 4).permute(0, 1, 3, 5, 2, 4)  # columns: outer, pair, byte, lane, half
        q = q.reshape(len(index), len(self.scales_and_zeros), -1).bfloat16() - 8
        scales, zeros = self.scales_and_zeros[:, index].transpose(0, 1).unbind(-1)  # (n, groups)
        return torch.addcmul(zeros[..., None], q, scales[..., None]).flatten(1)


class TinygemmMatrix:
    """A weight (rows, columns) in the kernel's layout, as one 4-bit matrix or the sum of two."""

    def __init__(self, weight: AffineWeight, pack: Pack, multiply: Multiply) -> None:
        self.shape = weight.shape
        self._multiply = multiply
        self.halves = [
            _Half(pack(_bytes(q), _k_tiles(weight.shape[1])), _in_bf16(scales, zeros, weight.shape[1]))
            for q, scales, zeros in halves(weight)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return sum(half.tiles.nbytes + half.scales_and_zeros.nbytes for half in self.halves)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows), both in bf16."""
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        if len(flat) > _FEW:
            return F.linear(x, self.dense())
        parts = (self._multiply(flat, half.tiles, half.group, half.scales_and_zeros) for half in self.halves)
        return reduce(torch.add, parts).view(*x.shape[:-1], -1)

    def rows(self, index: Tensor) -> Tensor:
        """The chosen rows, (n, columns) in bf16."""
        return reduce(torch.add, (half.rows(index) for half in self.halves))

    def dense(self) -> Tensor:
        """The whole weight, (rows, columns) in bf16."""
        rows, columns = self.shape
        index = torch.arange(rows, device=self.halves[0].tiles.device)
        return torch.cat([self.rows(chunk) for chunk in torch.split(index, max(1, _CHUNK // columns))])


def halves(weight: AffineWeight) -> list[tuple[Tensor, Tensor, Tensor]]:
    """4-bit matrices that sum to a weight: q (rows, columns), scales and zeros (rows, groups).

    Each means scale * (q - 8) + zero. The lower half's zero is the rounding error of the upper half's in bf16.
    """
    q, scales, biases = unpacked(weight.packed, weight.bits), weight.scales.float(), weight.biases.float()
    if weight.bits == 4:
        return [(q, scales, biases + 8 * scales)]
    middle = biases + 136 * scales
    rounded = middle.bfloat16().float()
    return [(q >> 4, 16 * scales, rounded), (q & 15, scales, middle - rounded)]


def _bytes(q: Tensor) -> Tensor:
    """(rows, columns) of 4 bits to (rows, columns / 2), the first column in the upper nibble."""
    return (q[:, ::2] << 4 | q[:, 1::2]).contiguous()


def _k_tiles(columns: int) -> int:
    return next(tiles for tiles in _K_TILES if columns % (16 * tiles) == 0)


def _in_bf16(scales: Tensor, zeros: Tensor, columns: int) -> Tensor:
    """Scales and zeros, each (rows, groups), to (columns / group, rows, 2), for the widest group that fits."""
    width = columns // scales.shape[1]
    group = next(group for group in _GROUPS if width % group == 0)
    both = torch.stack([scales, zeros], -1).repeat_interleave(width // group, 1)
    return both.transpose(0, 1).bfloat16().contiguous()


class TinygemmLinear(nn.Module):
    """A linear layer that multiplies with the kernel."""

    def __init__(self, matrix: TinygemmMatrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) to (..., rows)."""
        out = self.matrix(x)
        return out if self.bias is None else out + self.bias


class TinygemmEmbedding(nn.Module):
    """Token embeddings in the kernel's layout; also the head if it is tied."""

    def __init__(self, matrix: TinygemmMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to (B, T, hidden)."""
        return self.matrix.rows(tokens.flatten()).view(*tokens.shape, -1)

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return self.matrix(x)
