"""Packed weights without a CUDA kernel can be part of a captured step: nothing waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptcli.quant.affine import AffineWeight
from gptcli.quant.fp8 import Fp8Weight
from gptcli.quant.mxfp4 import Mxfp4Weight
from gptcli.quant.packed import PackedEmbedding, PackedExperts, PackedLinear, PackedWeight
from tests.cuda.fake_cuda import OnTheDevice, fake_cuda


def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def affine(bits: int, *stack: int) -> AffineWeight:
    scales = zeros(*stack, 64, 4, dtype=torch.float16)
    return AffineWeight(zeros(*stack, 64, 128 * bits // 8), scales, scales, bits)


FORMATS: dict[str, Callable[..., PackedWeight]] = {
    "3 bits": lambda *stack: affine(3, *stack),
    "4 bits": lambda *stack: affine(4, *stack),
    "mxfp4": lambda *stack: Mxfp4Weight(zeros(*stack, 64, 64), zeros(*stack, 64, 4)),
    "fp8": lambda *stack: Fp8Weight(
        zeros(*stack, 64, 128, dtype=torch.float8_e4m3fn), zeros(*stack, 64, 1, dtype=torch.float32), 128
    ),
}


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_waits_and_nothing_is_copied_to_the_device(form: str) -> None:
    make = FORMATS[form]
    with fake_cuda(), torch.inference_mode():
        linear, embedding = PackedLinear(make(), None), PackedEmbedding(make(), torch.bfloat16)
        experts = PackedExperts(make(6), torch.nn.Parameter(zeros(6, 64, dtype=torch.bfloat16)))
        x, chosen = zeros(2, 1, 128, dtype=torch.bfloat16), zeros(2, dtype=torch.int64)
        with OnTheDevice() as seen:
            made = linear(x), embedding(chosen[:, None]), embedding.project(x), experts.several(x, chosen)
            all_of_them = experts.several(x[:1].expand(6, 1, 128), None)
    assert [tuple(out.shape) for out in made] == [(2, 1, 64), (2, 1, 128), (2, 1, 64), (2, 1, 64)]
    assert all_of_them.shape == (6, 1, 64)
    assert {out.dtype for out in (*made, all_of_them)} == {torch.bfloat16} and len(seen.operations) > 20
