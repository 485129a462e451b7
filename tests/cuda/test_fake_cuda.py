"""The fake device notices waits and copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cuda.fake_cuda import OnTheDevice, fake_cuda

WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: x.sum().item(),
    "numbers": lambda x: x.tolist(),
    "a question": lambda x: bool((x > 0).all()),
    "indices": lambda x: x.nonzero(),
    "different ones": lambda x: x.unique(),
    "those that a mask chooses": lambda x: torch.masked_select(x, x > 0),
    "numbers of ours": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "a copy to us": lambda x: x.cpu(),
    "one side with the other": lambda x: x + torch.ones(2, 3),
}


@pytest.mark.parametrize("what", WAITS)
def test_waiting_for_the_device_or_leaving_it_raises(what: str) -> None:
    with fake_cuda(), OnTheDevice(), pytest.raises((RuntimeError, AssertionError)):
        WAITS[what](torch.ones(2, 3, device="cuda"))
