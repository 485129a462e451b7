"""ggml's blocks as weights: in a packed form of ours with exactly their values, else as the file's blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.gguf.blocks import BLOCKS, decoded
from gptcli.quant.ggml_blocks import packed_from_ggml
from gptcli.quant.packed import PackedWeight

GGML_TYPES = frozenset(BLOCKS) - {"F32", "F16", "BF16"}  # of blocks


@dataclass(frozen=True)
class GgmlWeight(PackedWeight):
    """A matrix of (rows, columns), or a stack of them, in blocks of a type.

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
    """A weight with exactly the values of blocks of a type. data: (..., bytes of a row) uint8.

    A vector becomes fp32. Blocks stay a `GgmlWeight` if their type has no packed form, or they have NaN or infinity.
    """
    if data.dim() == 1:
        return torch.from_numpy(decoded(kind, data.numpy()))
    return packed_from_ggml(kind, data) or GgmlWeight(data, kind)
