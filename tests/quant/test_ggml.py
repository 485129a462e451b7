"""ggml's blocks as weights: the values of every type to the bit, packed or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptcli.checkpoint.formats import Ggml, is_expanded
from gptcli.gguf.blocks import BLOCKS, decoded
from gptcli.quant.ggml import GGML_TYPES, GgmlWeight, ggml_weight
from gptcli.quant.packed import PackedWeight

TYPES = sorted(GGML_TYPES)


def random_blocks(kind: str, *outer: int) -> torch.Tensor:
    """Random rows of two blocks, whose scales are small numbers."""
    block = BLOCKS[kind]
    random = np.random.default_rng(3)
    data = random.integers(0, 256, (*outer, 2, block.size), np.uint8)
    at = 0
    for name, dtype, count in block.fields:
        size = int(dtype[-1]) * count
        if dtype == "f2":
            scales = random.normal(0, 0.1, (*outer, 2, count)).astype(np.float16)
            data[..., at : at + size] = scales.view(np.uint8)
        if name == "e":
            data[..., at] = random.integers(100, 140, (*outer, 2))
        at += size
    if kind == "IQ1_M":  # its scale is in the highest bits of four numbers
        data[..., 55] &= 0x3F
    return torch.from_numpy(data.reshape(*outer, 2 * block.size))


def values_of(weight: torch.Tensor | PackedWeight) -> np.ndarray:
    return (weight.dequantize(torch.float32) if isinstance(weight, PackedWeight) else weight).numpy()


@pytest.mark.parametrize("kind", TYPES)
def test_a_weight_has_exactly_the_values_of_its_blocks(kind: str) -> None:
    data = random_blocks(kind, 6)
    weight = ggml_weight(kind, data)
    assert np.array_equal(values_of(weight), decoded(kind, data.numpy()))


@pytest.mark.parametrize("kind", TYPES)
def test_a_stack_and_each_of_its_experts_have_exactly_the_values_of_their_blocks(kind: str) -> None:
    data = random_blocks(kind, 3, 5)
    weight = ggml_weight(kind, data)
    assert isinstance(weight, PackedWeight) and weight.shape == (3, 5, 2 * BLOCKS[kind].columns)
    assert np.array_equal(values_of(weight), decoded(kind, data.numpy()))
    assert np.array_equal(
        values_of(weight.expert(1).rows(torch.tensor([4, 0]))), decoded(kind, data[1, [4, 0]].numpy())
    )


def test_what_is_named_as_expanded_is_what_has_no_packed_form() -> None:
    expanded = {kind for kind in TYPES if is_expanded(Ggml(shape=(6, 1), tensors=(kind,), about=kind, kind=kind))}
    blocks = {kind for kind in TYPES if isinstance(ggml_weight(kind, random_blocks(kind, 6)), GgmlWeight)}
    assert expanded == blocks
    assert {"Q4_K", "Q6_K", "IQ4_NL", "MXFP4"} <= GGML_TYPES - blocks


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K"])
def test_a_scale_that_has_no_affine_form_leaves_the_blocks_as_they_are(kind: str) -> None:
    data = random_blocks(kind, 6)
    scale = 0 if kind != "Q4_K" else 2  # dmin: 0 times infinity
    data[2, scale : scale + 2] = torch.from_numpy(np.array([np.inf], np.float16).view(np.uint8))
    weight = ggml_weight(kind, data)
    assert isinstance(weight, GgmlWeight)
    assert np.array_equal(values_of(weight), decoded(kind, data.numpy()), equal_nan=True)


@pytest.mark.parametrize("kind", TYPES)
def test_a_single_row_is_dense(kind: str) -> None:
    data = random_blocks(kind, 1)[0]
    weight = ggml_weight(kind, data)
    assert isinstance(weight, torch.Tensor) and np.array_equal(weight.numpy(), decoded(kind, data.numpy()))
