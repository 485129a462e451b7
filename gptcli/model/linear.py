"""Linear layers that use all of a CPU for a single token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOST_PARTS = 32
_FEW_ROWS = 4  # beyond this a plain product is as fast


class Linear(nn.Linear):
    """x @ weight.T + bias."""

    def reset_parameters(self) -> None:
        """Nothing: the loader fills it, and torch's own way imports half a second of modules on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) to (..., out_features)."""
        return project(x, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, (..., columns), (rows, columns) and (rows,) to (..., rows).

    A decode step multiplies every weight with one vector, which some BLAS libraries do on one core, at a third of the
    memory bandwidth; a batch of products with parts of the matrix is spread over all (docs/benchmarks.md).
    """
    rows, columns = weight.shape
    parts = math.gcd(rows, _MOST_PARTS)
    vectors = x.numel() // columns
    if vectors > _FEW_ROWS or parts == 1 or x.is_cuda or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    columns_of_x = x.reshape(vectors, columns).t().expand(parts, columns, vectors)
    out = torch.bmm(weight.view(parts, -1, columns), columns_of_x)  # (parts, rows / parts, vectors)
    out = out.view(rows, vectors).t().reshape(*x.shape[:-1], rows)
    return out if bias is None else out + bias
