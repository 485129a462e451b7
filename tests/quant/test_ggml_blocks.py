"""Packed weights from ggml's blocks have the gguf package's values, in torch and in the kernels."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.kernels.bindings import BF16_LEVELS
from gptcli.kernels.layers import CompiledLinear, can_compile
from gptcli.kernels.tensors import Library
from gptcli.quant.ggml_blocks import packed_from_ggml
from gptcli.quant.packed import PackedWeight

COLUMNS = 512
# Bytes of each fp16 number in a block, and bits that a weight takes in the kernels.
TYPES = {
    "Q4_0": ((0,), 4.5), "Q4_1": ((0, 2), 5.0), "Q5_0": ((0,), 5.5), "Q5_1": ((0, 2), 6.0), "Q8_0": ((0,), 8.5),
    "IQ4_NL": ((0,), 4.5), "MXFP4": ((), 4.5), "Q4_K": ((0, 2), 4.625), "Q5_K": ((0, 2), 5.625),
    "Q6_K": ((208,), 6.625),
}  # fmt: skip


def blocks_of(kind: str, rows: int, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    """Random rows of blocks, (rows, bytes), whose factors are of both signs, small, zero and subnormal."""
    random = np.random.default_rng(seed)
    each, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = random.integers(0, 256, (rows, columns // each, size), np.uint8)
    for at in TYPES[kind][0]:
        factors = random.normal(0, 0.01, data.shape[:2]).astype(np.float16)
        factors.flat[::7], factors.flat[::11] = 0, np.float16(3e-7)
        data[..., at : at + 2] = factors[..., None].view(np.uint8)
    if kind == "MXFP4":
        data[..., 0] = random.integers(115, 125, data.shape[:2])
        data[0, 0, 0] = 0
    return data.reshape(rows, -1)


def meant(kind: str, data: np.ndarray) -> Tensor:
    return torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]))


def packed(kind: str, data: np.ndarray) -> PackedWeight:
    weight = packed_from_ggml(kind, torch.from_numpy(data))
    assert weight is not None
    return weight


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", TYPES)
def test_the_kernels_give_the_products_of_these_values(kernels: Library, kind: str) -> None:
    data = blocks_of(kind, 100)
    weight, values, bias = packed(kind, data), meant(kind, data).double(), torch.randn(100)
    assert can_compile(weight)
    x = torch.randn(40, COLUMNS)
    for arithmetic, tokens, relative in (
        *(("fp32", tokens, 3e-6) for tokens in (1, 2, 3, 5, 8, 16, 17, 40)),
        ("bf16", 40, 0.01 if kernels.level in BF16_LEVELS else 3e-6),
        ("int8", 1, 0.02),
        ("int8", 40, 0.02),
    ):
        linear = CompiledLinear(kernels, weight, torch.nn.Parameter(bias, requires_grad=False), arithmetic)
        wanted = F.linear(x[:tokens].double(), values, bias.double())
        error = (linear(x[:tokens]) - wanted).abs().max() / (wanted - bias).abs().max()
        assert error < relative, (arithmetic, tokens)


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_in_the_kernels_is_that_of_the_blocks_and_takes_about_their_bytes(kernels: Library, kind: str) -> None:
    data = blocks_of(kind, 32)
    matrix = CompiledLinear(kernels, packed(kind, data), None, "fp32").matrix
    assert matrix.size * 8 == 32 * COLUMNS * TYPES[kind][1]
    rows = torch.stack([kernels.row(matrix, row) for row in range(32)])
    assert torch.allclose(rows, meant(kind, data), rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("columns", [32, 64, 96])
@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "IQ4_NL", "MXFP4"])
def test_rows_that_are_no_whole_records_are_left_to_torch_or_keep_their_biases(
    kernels: Library, kind: str, columns: int
) -> None:
    data = blocks_of(kind, 20, columns)
    weight, x = packed(kind, data), torch.randn(3, columns)
    assert can_compile(weight) == (columns == 64 or kind.startswith("Q5"))
    if can_compile(weight):
        wanted = F.linear(x, meant(kind, data))
        assert (CompiledLinear(kernels, weight, None, "fp32")(x) - wanted).abs().max() < 1e-6 * wanted.abs().max()
