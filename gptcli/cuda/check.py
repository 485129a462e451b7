"""Compares the results of fast kernels with those of plain ones."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The norm of the difference of two fp32 tensors, relative to the expected one's; 0 if both are zero."""
    size = expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((got - expected).norm() / size)
