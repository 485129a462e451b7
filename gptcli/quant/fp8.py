"""FP8 weights (E4M3) with one scale, a scale for each row, or a scale for each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from gptcli.quant.packed import PackedWeight


@dataclass(frozen=True)
class Fp8Weight(PackedWeight):
    """Values (..., rows, columns) in float8_e4m3fn, multiplied by scales (..., rows, groups).

    A group has `width` columns; the last one may have fewer.
    """

    values: Tensor
    scales: Tensor
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (experts, rows, columns)."""
        return tuple(self.values.shape)

    def columns(self, ranges: Sequence[tuple[int, int]]) -> Self | None:
        """See `StoredWeight.columns`."""
        whole_groups = self.width * self.scales.shape[-1] == self.shape[-1]
        return super().columns(ranges) if whole_groups or self.scales.shape[-1] == 1 else None

    def expanded(self) -> Tensor:
        """The whole weight in fp32."""
        columns = self.values.shape[-1]
        return self.values.float() * self.scales.repeat_interleave(self.width, -1)[..., :columns]


def fp8_weight(values: Tensor, scales: Tensor, block: tuple[int, int]) -> Fp8Weight:
    """A matrix (rows, columns) with its scales as stored.

    scales: one number; one per row, (rows,) or (rows, 1); or one per block, of which the last may be smaller.
    """
    rows, columns = values.shape
    scales = scales.float()
    if scales.numel() == 1:
        return Fp8Weight(values, scales.view(1, 1).repeat(rows, 1), columns)
    if scales.shape in ((rows,), (rows, 1)):
        return Fp8Weight(values, scales.view(rows, 1), columns)
    height, width = min(block[0], rows), min(block[1], columns)  # config.json may say any size
    return Fp8Weight(values, scales.repeat_interleave(height, 0)[:rows], width)
