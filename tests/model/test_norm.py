from __future__ import annotations

from typing import Literal

import pytest
import torch

from gptcli.model.config import NormConfig
from gptcli.model.norm import Norm


def random_norm(kind: Literal["rms", "layer"], *shape: int, **config: bool) -> Norm:
    torch.manual_seed(0)
    norm = Norm(NormConfig(kind=kind, eps=1e-3, **config), *shape)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize(("kind", "bias"), [("rms", False), ("layer", False), ("layer", True)])
def test_a_norm_in_one_kernel_is_the_norm(kind: Literal["rms", "layer"], bias: bool) -> None:
    norm, x = random_norm(kind, 64, bias=bias), torch.randn(2, 3, 64) * 5
    assert norm._can_be_fused(x)
    torch.testing.assert_close(norm._fused(x), norm(x))


def test_a_norm_in_one_kernel_rounds_once() -> None:
    norm, x = random_norm("rms", 512).bfloat16(), torch.randn(64, 512).bfloat16()
    exact = norm.float()(x.float())
    norm.bfloat16()
    assert norm._fused(x).dtype == torch.bfloat16
    once, twice = ((got.float() - exact).square().mean() for got in (norm._fused(x), norm(x)))
    assert once < 0.8 * twice


@pytest.mark.parametrize(
    "norm",
    [
        random_norm("rms", 64, bias=True),
        random_norm("rms", 64, weight=False),
        random_norm("rms", 4, 64),
        random_norm("rms", 64).bfloat16(),
    ],
    ids=["a bias", "no weight", "a weight for each head", "another dtype"],
)
def test_norms_without_a_fused_kernel_are_computed_step_by_step(norm: Norm) -> None:
    assert not norm._can_be_fused(torch.randn(2, 4, 64))
