"""Embeddings, and linear layers that use all cores of a CPU for a single token."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MOST_SLICES = 32
_FEW_ROWS = 4  # with more, a plain product is as fast
_PROBE_ROWS, _PROBE_COLUMNS, _TURNS = 8192, 1024, 5  # 32 MB: like a step's weights, more than most caches hold


class Linear(nn.Linear):
    """x @ weight.T + bias."""

    def reset_parameters(self) -> None:
        """Does nothing: the loader fills it, and torch's own imports half a second of modules on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) to (..., out_features)."""
        return project(x, self.weight, self.bias)


class AdaptedLinear(nn.Module):
    """base(x) + x @ down.T @ up.T: one or several adapters of a layer whose own weight, packed or dense, stays.

    Source: Hu et al., 2021.
    """

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        """down: (rank, in_features); up: (out_features, rank), which includes all factors."""
        super().__init__()
        self.base = base
        self.down, self.up = (nn.Parameter(each, requires_grad=False) for each in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) to (..., out_features)."""
        out: Tensor = self.base(x)
        return out + F.linear(F.linear(x, self.down), self.up)


class Embedding(nn.Embedding):
    """Embeddings that can also serve as the output head."""

    def reset_parameters(self) -> None:
        """Does nothing: see `Linear`."""

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return project(x, self.weight)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: (..., columns), (rows, columns) and (rows,) to (..., rows).

    A decode step multiplies every weight with one vector. Some BLAS libraries do that on one core, at a third of the
    memory bandwidth; there a batch of products with slices of the matrix uses all cores. Elsewhere it is slower
    (docs/benchmarks.md), so the first call measures. Both round equally much, but not to the same bits.
    """
    rows, columns = weight.shape
    slices = math.gcd(rows, _MOST_SLICES)
    vectors = x.numel() // columns
    if not 0 < vectors <= _FEW_ROWS or slices == 1 or x.is_cuda or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if not _slices_are_faster(vectors, torch.get_num_threads()):
        return F.linear(x, weight, bias)
    out = _in_slices(x.reshape(vectors, columns), weight, slices).reshape(*x.shape[:-1], rows)
    return out if bias is None else out + bias


def _in_slices(x: Tensor, weight: Tensor, slices: int) -> Tensor:
    """x @ weight.T for (vectors, columns), as a batch of products."""
    (vectors, columns), rows = x.shape, weight.shape[0]
    out = torch.bmm(weight.view(slices, -1, columns), x.t().expand(slices, columns, vectors))
    return out.view(rows, vectors).t()


@cache
def _slices_are_faster(vectors: int, threads: int) -> bool:
    """Whether slices take at most four fifths of the time here: a closer race would change with every process.

    The fastest of a few turns counts, since other processes only ever slow one down. That takes tens of milliseconds.
    """
    del threads  # a key only
    shapes = [(rows, _PROBE_COLUMNS) for rows in (_PROBE_ROWS, vectors)]
    weight, x = (torch.ones(shape, dtype=torch.float32, device="cpu") for shape in shapes)  # zeros would share a page
    ways = (lambda: F.linear(x, weight)), (lambda: _in_slices(x, weight, _MOST_SLICES))
    times = [[_seconds(way) for way in ways] for _ in range(_TURNS + 1)][1:]  # the first turn only warms up
    plain, sliced = (min(each) for each in zip(*times, strict=True))
    faster: bool = sliced <= 0.8 * plain
    return faster


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
