"""torch's int4 kernel for CUDA. The CPU has neither its layout nor its product, so both are written out here.

The layout is that of matrix_to_m16n8k16_Bint4_layout in torch's aten/src/ATen/native/cuda/int4mm.cu; the product
rounds as the kernel does. With a GPU, the kernel itself is tested, too.
"""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.cuda.int4 import (
    Tinygemm,
    TinygemmEmbedding,
    TinygemmLinear,
    TinygemmMatrix,
    halves,
)
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.decoder import Decoder
from gptcli.quant.affine import AffineWeight, quantize_affine
from gptcli.quant.packed import PackedEmbedding, PackedLinear
from tests.cuda.fake_cuda import OnTheDevice, fake_cuda
from tests.tiny import make_model

CPU = torch.device("cpu")


@cache
def locations(rows: int, columns: int, k_tiles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every weight: its row, its word's index in all tiles, its first bit in the word, and its column."""
    found = []
    words = itertools.product(range(rows // 8), range(columns // (16 * k_tiles)), range(32), range(k_tiles // 2))
    for word, (row_tile, outer, lane, pair) in enumerate(words):
        first = (outer * k_tiles + 2 * pair) * 8  # of the bytes of a row
        for number, byte in enumerate((0, 4, 8, 12)):
            column = 2 * (first + byte + lane % 4)
            found.append((row_tile * 8 + lane // 4, word, 4 * number, column))  # the upper half of the byte
            found.append((row_tile * 8 + lane // 4, word, 4 * number + 16, column + 1))
    row, word, bit, column = torch.tensor(found).unbind(1)
    return row, word, bit, column


def pack(stored: Tensor, k_tiles: int) -> Tensor:
    """`torch._convert_weight_to_int4pack` on CUDA: (rows, columns / 2) uint8, the first column in the upper half."""
    rows, columns = stored.shape[0], stored.shape[1] * 2
    assert stored.dtype == torch.uint8 and stored.is_contiguous()
    assert rows % 8 == 0 and columns % (16 * k_tiles) == 0 and k_tiles in (2, 4, 8)
    row, word, bit, column = locations(rows, columns, k_tiles)
    bytes_of = stored[row, column // 2].long()
    q = torch.where(column % 2 == 1, bytes_of & 15, bytes_of >> 4)
    words = torch.zeros(rows * columns // 8, dtype=torch.int64).index_add(0, word, q << bit)
    shape = rows // 8, columns // (16 * k_tiles), 32, k_tiles // 2
    return torch.where(words >= 2**31, words - 2**32, words).int().view(shape)


def multiply(x: Tensor, tiles: Tensor, group: int, scales_and_zeros: Tensor) -> Tensor:
    """`torch._weight_int4pack_mm` on CUDA."""
    rows, columns = tiles.shape[0] * 8, x.shape[1]
    assert x.dtype == scales_and_zeros.dtype == torch.bfloat16 and x.dim() == 2 and x.is_contiguous()
    assert group in (32, 64, 128, 256) and scales_and_zeros.shape == (columns // group, rows, 2)
    assert tiles.dtype == torch.int32 and scales_and_zeros.is_contiguous()
    row, word, bit, column = locations(rows, columns, tiles.shape[3] * 2)
    q = torch.empty(rows, columns)
    q[row, column] = (tiles.flatten()[word] >> bit & 15).float()
    scales, zeros = scales_and_zeros.float().repeat_interleave(group, 0).unbind(-1)  # (columns, rows)
    weight = torch.addcmul(zeros, q.t() - 8, scales).bfloat16()
    return (x.float() @ weight.float()).bfloat16()


KERNELS = [(CPU, Tinygemm(pack, multiply))]
if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
    KERNELS.append((torch.device("cuda"), Tinygemm()))


def random_weight(
    rows: int, columns: int, bits: int, group: int = 32, dtype: torch.dtype = torch.float16
) -> AffineWeight:
    torch.manual_seed(rows + columns + bits)
    weight = quantize_affine(torch.randn(rows, columns) + 0.3, bits, group)
    return AffineWeight(weight.packed, weight.scales.to(dtype), weight.biases.to(dtype), bits)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.cpu().float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("device", "kernel"), KERNELS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("columns", "group"),
    [(32, 32), (64, 32), (64, 64), (96, 32), (128, 32), (256, 128), (256, 256), (512, 512), (384, 384), (192, 64)],
)
def test_products_and_rows_are_those_of_the_weight(
    columns: int, group: int, bits: int, device: torch.device, kernel: Tinygemm
) -> None:
    weight = random_weight(16, columns, bits, group)
    wanted = weight.dequantize(torch.float32)
    made = kernel.matrix(weight, device)
    assert made is not None and kernel.failure is None and kernel.used
    x = torch.randn(3, 2, columns).bfloat16()
    assert made(x.to(device)).shape == (3, 2, 16)
    assert error(made(x.to(device)), x.float() @ wanted.t()) < 2**-7
    rows = torch.tensor([15, 0, 7, 8, 7])
    assert error(made.rows(rows.to(device)), wanted[rows]) < 2**-8
    assert error(made.dense(), wanted) < 2**-8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_halves_of_a_weight_sum_to_it(bits: int, dtype: torch.dtype) -> None:
    weight = random_weight(16, 64, bits, dtype=dtype)
    total = torch.zeros(16, 64)
    for q, scales, zeros in halves(weight):
        assert q.dtype == torch.uint8 and q.max() <= 15
        total += torch.addcmul(zeros[..., None], q.view(16, -1, 32).float() - 8, scales[..., None]).view(16, 64)
    torch.testing.assert_close(total, weight.expanded(), rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_multiplied_with_the_dense_weight() -> None:
    weight = random_weight(16, 64, 4)
    calls = list[int]()

    def counted(x: Tensor, *arguments: object) -> Tensor:
        calls.append(len(x))
        return multiply(x, *arguments)  # type: ignore[arg-type]

    made = TinygemmMatrix(weight, pack, counted)
    x = torch.randn(600, 64).bfloat16()
    assert error(made(x), x.float() @ weight.expanded().t()) < 2**-7
    assert calls == []
    made(x[:512])
    assert calls == [512]


@pytest.mark.parametrize("weight", [
    random_weight(12, 64, 4),
    AffineWeight(torch.zeros(8, 24, dtype=torch.uint8), torch.ones(8, 2), torch.ones(8, 2), bits=3),
    AffineWeight(torch.zeros(2, 8, 32, dtype=torch.uint8), torch.ones(2, 8, 2), torch.ones(2, 8, 2), bits=4),
    AffineWeight(torch.zeros(8, 32, dtype=torch.uint8), torch.ones(8, 4), torch.ones(8, 4), bits=4),
], ids=["12 rows", "3 bits", "experts", "groups of 16"])  # fmt: skip
def test_a_weight_without_a_layout_stays_as_it_is_and_is_no_failure(weight: AffineWeight) -> None:
    kernel = Tinygemm(pack, multiply)
    assert kernel.matrix(weight, CPU) is None and kernel.failure is None


def halved(x: Tensor, *arguments: object) -> Tensor:
    return multiply(x, *arguments) / 2  # type: ignore[arg-type]


def missing(*arguments: object) -> Tensor:
    raise RuntimeError("_weight_int4pack_mm_cuda is not available for build.\nat int4mm.cu")


def of_another_maker(stored: Tensor, k_tiles: int) -> Tensor:
    return pack(stored.flip(1).contiguous(), k_tiles)


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (Tinygemm(pack, halved), r"torch's int4 kernel is off by 0\.5 of the size of a product \(16 x 64, 4 bits\)"),
        (Tinygemm(pack, missing), r"torch's int4 kernel does not run here: .* is not available for build\.$"),
        (Tinygemm(of_another_maker, multiply), "torch's int4 kernel is off by"),
        (Tinygemm(of_another_maker, lambda x, *_: x @ random_weight(16, 64, 4).dequantize(x.dtype).t()), "is off by"),
    ],
    ids=["wrong product", "not in this build", "another order", "another order of what is made dense"],
)
def test_a_kernel_that_computes_something_else_is_not_used(kernel: Tinygemm, why: str) -> None:
    for _ in range(2):  # the second time from memory
        assert kernel.matrix(random_weight(16, 64, 4), CPU) is None
    assert kernel.failure is not None and re.search(why, kernel.failure) and not kernel.used


def loaded(model: Path, packing: str, tinygemm: Tinygemm | None) -> Decoder:
    plan = WeightPlan(CPU, torch.bfloat16, packing, tinygemm=tinygemm)  # type: ignore[arg-type]
    return load_decoder(ModelFolder.open(model), plan)


@pytest.mark.parametrize("packing", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_with_it_what_it_does_without(packing: str, tied: bool, tmp_path: Path) -> None:
    model = make_model(tmp_path, hidden_size=64, intermediate_size=96, tie_word_embeddings=tied)
    tokens = torch.arange(3, 20)[None]
    logits = []
    for kernel in (Tinygemm(pack, multiply), None):
        decoder = loaded(model, packing, kernel)
        kinds = [type(module) for module in decoder.modules()]
        own = (TinygemmLinear, TinygemmEmbedding) if kernel else (PackedLinear, PackedEmbedding)
        assert kinds.count(own[0]) == 8 + (not tied) and kinds.count(own[1]) == 1
        kept = KVCache(decoder.config, 64, CPU, torch.bfloat16)
        logits.append(decoder.logits(decoder(tokens, kept)))
    assert error(logits[0], logits[1]) < 0.03


def test_a_model_whose_kernel_is_wrong_keeps_its_packed_weights(tmp_path: Path) -> None:
    kernel = Tinygemm(pack, halved)
    model = make_model(tmp_path, hidden_size=64, intermediate_size=96)
    decoder = loaded(model, "int4", kernel)
    kinds = [type(module) for module in decoder.modules()]
    assert kinds.count(PackedLinear) == 8 and kinds.count(PackedEmbedding) == 1
    assert kernel.failure is not None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 4096])
def test_torch_takes_the_shapes_and_types_on_cuda_and_nothing_waits_there(bits: int, columns: int) -> None:
    with fake_cuda(), torch.inference_mode():
        packed = torch.zeros(320, columns * bits // 8, dtype=torch.uint8, device="cuda")
        scales = torch.ones(320, columns // 32, dtype=torch.float16, device="cuda")
        weight = AffineWeight(packed, scales, scales, bits)
        made = TinygemmMatrix(weight, torch._convert_weight_to_int4pack, torch._weight_int4pack_mm)
        tokens = torch.zeros(2, 1, dtype=torch.int64, device="cuda")
        with OnTheDevice() as seen:
            embedding = TinygemmEmbedding(made)
            x = embedding(tokens)
            logits = embedding.project(x)
            many = TinygemmLinear(made, None)(x.expand(2, 400, columns))
    assert (x.shape, x.dtype) == ((2, 1, columns), torch.bfloat16)
    assert (logits.shape, logits.dtype, many.shape) == ((2, 1, 320), torch.bfloat16, (2, 400, 320))
    assert sum("_weight_int4pack_mm" in name for name in seen.operations) == bits // 4


def test_eight_bits_lose_little_more_than_weights_in_bf16_do() -> None:
    dense = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    weight = quantize_affine(dense, 8)
    made = Tinygemm(pack, multiply).matrix(weight, CPU)
    assert made is not None
    as_bf16 = error(weight.dequantize(torch.bfloat16), weight.dequantize(torch.float32))
    assert error(made.dense(), weight.dequantize(torch.float32)) < 2 * as_bf16
