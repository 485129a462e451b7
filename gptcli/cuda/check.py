"""Compares the results of fast kernels with those of plain ones."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The norm of two fp32 tensors' difference, divided by the expected one's norm; 0 if both are zero."""
    size = expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((got - expected).norm() / size)
