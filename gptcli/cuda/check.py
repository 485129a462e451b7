"""How far what is computed fast is from what is computed plainly."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The norm of the difference of two tensors in fp32, as a part of what was expected; 0 where both are zero."""
    size = expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((got - expected).norm() / size)
