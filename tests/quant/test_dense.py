"""Dense weights take less memory if every number stays exact, and only then."""

from __future__ import annotations

import pytest
import torch

from gptcli.quant.dense import DenseWeight, narrowed

SPECIAL = [0.0, -0.0, 1.0, -2.5, 2.0**-14, -(2.0**-20), float("inf"), -float("inf")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_weights_that_are_halves_become_halves_of_the_same_bits(dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(40_000), torch.tensor(SPECIAL)]).to(dtype).view(8, -1)
    less = narrowed(values.float())
    assert less.dtype == dtype
    assert less.view(torch.int16).equal(values.view(torch.int16))


@pytest.mark.parametrize("index", [0, 20_000, 39_999])
@pytest.mark.parametrize("number", [0.1, 1e-40, 1 + 2**-20])
def test_one_weight_that_needs_fp32_keeps_all_in_fp32(index: int, number: float) -> None:
    values = torch.randn(40_000).bfloat16().float()
    values[index] = number
    assert narrowed(values.view(100, 400)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_as_they_are(dtype: torch.dtype) -> None:
    values = torch.randn(4, 4).to(dtype)
    assert narrowed(values) is values


def test_a_dense_weight_expands_to_its_numbers_in_fp32() -> None:
    weight = DenseWeight(torch.randn(3, 4, 5).bfloat16())
    assert weight.shape == (3, 4, 5)
    assert weight.expanded().equal(weight.values.float())
