"""Linear layers that use all cores of a CPU for a single token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOST_SLICES = 32
_FEW_ROWS = 4  # with more, a plain product is as fast


class Linear(nn.Linear):
    """x @ weight.T + bias."""

    def reset_parameters(self) -> None:
        """Does nothing: the loader fills it, and torch's own imports half a second of modules on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) to (..., out_features)."""
        return project(x, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: (..., columns), (rows, columns) and (rows,) to (..., rows).

    A decode step multiplies every weight with one vector. Some BLAS libraries do that on one core, at a third of the
    memory bandwidth; a batch of products with slices of the matrix uses all cores (docs/benchmarks.md).
    """
    rows, columns = weight.shape
    slices = math.gcd(rows, _MOST_SLICES)
    vectors = x.numel() // columns
    if vectors > _FEW_ROWS or slices == 1 or x.is_cuda or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    columns_of_x = x.reshape(vectors, columns).t().expand(slices, columns, vectors)
    out = torch.bmm(weight.view(slices, -1, columns), columns_of_x)  # (slices, rows / slices, vectors)
    out = out.view(rows, vectors).t().reshape(*x.shape[:-1], rows)
    return out if bias is None else out + bias
