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


def test_staying_on_the_device_does_not_raise() -> None:
    with fake_cuda(), OnTheDevice() as seen:
        x = torch.ones(4, 2, 3, device="cuda")
        row = torch.zeros(1, dtype=torch.int64, device="cuda")
        made = [
            x[0],
            x[:, None],
            x[..., None],
            x[..., :2],
            x[1:, 0, -1],
            x[row],
            x[:, row],
            2 * x,
            x * torch.tensor(2.0),
        ]
    shapes = [(2, 3), (4, 1, 2, 3), (4, 2, 3, 1), (4, 2, 2), (3,), (1, 2, 3), (4, 1, 3), (4, 2, 3), (4, 2, 3)]
    assert [tuple(each.shape) for each in made] == shapes
    assert all(each.is_cuda for each in made) and seen.operations
