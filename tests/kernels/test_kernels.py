"""Every instruction set that this machine has, against the same computation in torch."""

from __future__ import annotations

import math
import os
import re
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.errors import UsageError
from gptcli.kernels import bindings, tensors
from gptcli.kernels.bindings import BF16_LEVELS, Arithmetic, Matrix
from gptcli.kernels.tensors import Library
from gptcli.quant.affine import pack_nibbles
from tests.kernels.operations import Operations
from tests.parity.test_families import relative_error

ROWS = (1, 2, 15, 16, 17, 100, 577)
TOKENS = (*range(1, 41), 130, 600)
DENSE = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def kernels(kernels: Library) -> Operations:
    """The kernels with the single operations, at each level."""
    path = bindings.built_file()
    assert path is not None
    return Operations(path)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


class Affine(NamedTuple):
    """q, (rows, columns), a byte each, and its constants."""

    q: Tensor
    scales: Tensor
    biases: Tensor
    bits: int

    def matrix(self, kernels: Library, arithmetic: Arithmetic = "int8") -> Matrix:
        packed = pack_nibbles(self.q) if self.bits == 4 else self.q
        matrix = kernels.affine(packed, self.scales, self.biases, self.bits)
        kernels.set_arithmetic(matrix, arithmetic)
        return matrix

    def expanded(self) -> Tensor:
        q = self.q.double().view(*self.scales.shape, -1)
        return (q * self.scales.double()[..., None] + self.biases.double()[..., None]).view(self.q.shape)


def affine(rows: int, columns: int, bits: int, group: int, dtype: torch.dtype = torch.float16) -> Affine:
    q = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scales = (torch.rand(rows, columns // group) * 0.02 + 0.001).to(dtype)
    biases = (-scales.float() * 2 ** (bits - 1) + torch.randn(scales.shape) * 0.01).to(dtype)
    return Affine(q, scales, biases, bits)


def centred(rows: int, columns: int, bits: int, group: int = 32) -> Affine:
    """Weights whose scales imply the biases; scales of both signs, zero, and subnormal."""
    scales = torch.randn(rows, columns // group).mul(0.01).half()
    scales.flatten()[::5], scales[0, -1] = 3e-7, 0
    return Affine(affine(rows, columns, bits, group).q, scales, scales * -(2 ** (bits - 1)), bits)


def quantized(x: Tensor, steps: int = 127) -> Tensor:
    """x as the affine kernels round it: to signed 8 bits, or to other steps, with a scale per 32 columns."""
    segments = x.view(*x.shape[:-1], -1, 32)
    most = segments.abs().amax(-1, keepdim=True)
    inverse = torch.where(most < 1e-30, 0, torch.tensor(float(steps)) / most)  # `127 / most` is 127 times a reciprocal
    values: Tensor = (segments * inverse).round().double() * (most / steps).double()
    return values.view(x.shape)


def assert_close(out: Tensor, expected: Tensor, relative: float = 1e-5, scale: float = 1e-30) -> None:
    """Asserts equality within `relative` of the largest value, or of `scale`: cancellation costs small sums digits."""
    assert out.shape == expected.shape
    assert out.isfinite().all()
    error, most = (out.double() - expected.double()).abs().amax(), expected.double().abs().amax()
    assert error <= relative * max(most, scale), f"{error} of {most}"


def assert_product(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, relative: float = 1e-5) -> None:
    """Asserts out = x @ weight.T + bias, within `relative` of the usual size of such products."""
    x, weight = x.double(), weight.double()
    usual = (x.norm(dim=-1).amax() * weight.norm(dim=-1).amax()).item() / x.shape[-1] ** 0.5
    assert_close(out, F.linear(x, weight, None if bias is None else bias.double()), relative, usual)


def assert_affine(kernels: Library, weight: Affine, x: Tensor, bias: Tensor | None = None) -> None:
    """Asserts both products: of activations in 8 bits, and in fp32."""
    assert_product(kernels.linear(weight.matrix(kernels), x, bias), quantized(x), weight.expanded(), bias)
    assert_product(kernels.linear(weight.matrix(kernels, "fp32"), x, bias), x, weight.expanded(), bias)


# Dense


@pytest.mark.parametrize("columns", [1, 7, 33, 576])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DENSE)
def test_dense_weights_of_any_shape(kernels: Library, dtype: torch.dtype, rows: int, columns: int) -> None:
    weight, bias = torch.randn(rows, columns).to(dtype), torch.randn(rows)
    for tokens in (1, 2, 3, 5):
        x = torch.randn(tokens, columns)
        out = kernels.linear(kernels.dense(weight), x, bias)
        assert_product(out, x, weight, bias)


# (rows, columns, tokens): each value with a few values of the other two.
MANY = (
    (1, 1, 13), (1, 576, 515), (15, 7, 9), (15, 257, 33), (31, 33, 12), (31, 1000, 130), (32, 255, 13), (32, 256, 12),
    (33, 256, 33), (33, 257, 9), (100, 1, 130), (100, 576, 12), (577, 7, 515), (577, 257, 13), (577, 1000, 33),
)  # fmt: skip


@pytest.mark.parametrize(("rows", "columns", "tokens"), MANY)
@pytest.mark.parametrize("dtype", DENSE)
def test_dense_weights_and_many_tokens(
    kernels: Library, dtype: torch.dtype, rows: int, columns: int, tokens: int
) -> None:
    weight = torch.randn(rows * columns + 1).to(dtype)[1:].view(rows, columns)
    x, bias = torch.randn(tokens * columns + 1)[1:].view(tokens, columns), torch.randn(rows + 1)[1:]
    assert_product(kernels.linear(kernels.dense(weight), x), x, weight)
    assert_product(kernels.linear(kernels.dense(weight), x, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", DENSE)
def test_dense_weights_and_every_number_of_tokens(kernels: Library, dtype: torch.dtype) -> None:
    weight, x = torch.randn(100, 129).to(dtype), torch.randn(max(TOKENS), 129)
    matrix = kernels.dense(weight)
    for tokens in TOKENS:
        assert_product(kernels.linear(matrix, x[:tokens]), x[:tokens], weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_affect_only_their_row_and_token(kernels: Library, value: float) -> None:
    weight, x = torch.randn(40, 300), torch.randn(30, 300)
    weight[3, 290], x[17, 5] = value, value
    out = kernels.linear(kernels.dense(weight), x)
    assert not out[17].isfinite().any() and not out[:, 3].isfinite().any()
    others = torch.ones_like(out, dtype=torch.bool)
    others[17], others[:, 3] = False, False
    assert out[others].isfinite().all()


def test_every_fp16_number_is_read_exactly(kernels: Library) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    weight = bits.view(torch.float16)[:, None].expand(-1, 16).contiguous()
    finite = weight[:, 3].isfinite()
    for tokens in (1, 16):
        x = torch.zeros(tokens, 16)
        x[:, 3] = 1
        out = kernels.linear(kernels.dense(weight), x)[tokens - 1]
        assert torch.equal(out[finite], weight[:, 3].float()[finite])
        assert not out[~finite].isfinite().any()
    row = int(finite.nonzero()[0])
    assert torch.equal(kernels.row(kernels.dense(weight), row), weight[row].float())


# Affine


@pytest.mark.parametrize(
    ("columns", "group"),
    [(32, 32), (64, 32), (96, 32), (576, 32), (1536, 32), (128, 64), (192, 64), (384, 64), (128, 128), (512, 128)],
)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("make", [affine, centred])
def test_affine_weights_of_any_shape(
    kernels: Library, make: Callable[..., Affine], bits: int, columns: int, group: int
) -> None:
    for rows in ROWS:
        weight = make(rows, columns, bits, group)
        for tokens in (1, 4, 20):
            assert_affine(kernels, weight, torch.randn(tokens, columns), torch.randn(rows))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "make", [centred, *(partial(affine, dtype=dtype) for dtype in DENSE)], ids=["centred", "fp32", "fp16", "bf16"]
)
def test_affine_weights_and_every_number_of_tokens(kernels: Library, make: Callable[..., Affine], bits: int) -> None:
    weight, x, bias = make(100, 192, bits, 64), torch.randn(max(TOKENS), 192), torch.randn(100)
    rounding, exact = weight.matrix(kernels), weight.matrix(kernels, "fp32")
    for tokens in TOKENS:
        some = x[:tokens]
        assert_product(kernels.linear(rounding, some, bias), quantized(some), weight.expanded(), bias)
        assert_product(kernels.linear(exact, some, bias), some, weight.expanded(), bias)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 5, 30])
def test_each_weight_is_that_of_an_expanded_matrix(kernels: Library, tokens: int, bits: int) -> None:
    weight = affine(37, 64, bits, 32)
    matrix, x = weight.matrix(kernels, "fp32"), torch.zeros(tokens, 64)
    for column in range(64):
        x.zero_()[-1, column] = 1
        assert_close(kernels.linear(matrix, x)[-1], weight.expanded()[:, column], 2e-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_affine_sources_may_lie_at_any_byte(kernels: Library, bits: int) -> None:
    weight, x = affine(33, 64, bits, 32), torch.randn(2 * 64 + 1)[1:].view(2, 64)
    packed = pack_nibbles(weight.q) if bits == 4 else weight.q
    shifted = torch.cat([packed.new_zeros(1), packed.flatten()])[1:].view(packed.shape)
    constants = [torch.cat([c.new_zeros(1), c.flatten()])[1:].view(c.shape) for c in (weight.scales, weight.biases)]
    assert_product(kernels.linear(kernels.affine(shifted, *constants, bits), x), x, weight.expanded())


@pytest.mark.parametrize("level", [0, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_greatest_and_the_least_quants_are_exact(kernels: Library, bits: int, level: int) -> None:
    weight = affine(40, 256, bits, 32)
    weight.q.fill_(level % 2**bits)
    x = torch.randn(3, 256).sign()  # products as large as they get, and sums of all signs
    assert_affine(kernels, weight, x)
    assert_affine(kernels, weight, torch.ones(3, 256))


@pytest.mark.parametrize("value", [1e4, -1e30, 1e-20, 1e-42])
def test_an_outlier_or_a_tiny_value_costs_precision_only_in_its_segment(kernels: Library, value: float) -> None:
    x = torch.randn(2, 128)
    x[0, 40] = value
    x[1, 32:64] = value
    assert_affine(kernels, affine(40, 128, 8, 32), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [1, 20])
def test_nan_and_infinity_affect_only_their_token(kernels: Library, value: float, tokens: int) -> None:
    x = torch.randn(2, 128)
    x[1, 70] = value
    for weight in (affine(40, 128, 4, 32), centred(40, 128, 8)):
        for arithmetic in get_args(Arithmetic):
            out = kernels.linear(weight.matrix(kernels, arithmetic), x.repeat(tokens, 1))
            assert out[::2].isfinite().all()
            assert not out[1::2].isfinite().any()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_a_packed_matrix_can_be_read_back(kernels: Library, bits: int) -> None:
    weight = affine(37, 128, bits, 64, torch.bfloat16)
    matrix = weight.matrix(kernels)
    rows = torch.stack([kernels.row(matrix, row) for row in range(37)])
    assert_close(rows, weight.expanded(), 1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_centred_weights_are_kept_without_biases_and_give_the_same_numbers(kernels: Library, bits: int) -> None:
    weight = centred(37, 128, bits)
    stored = weight._replace(scales=weight.scales.float(), biases=weight.biases.float())
    matrix, other = weight.matrix(kernels, "fp32"), stored.matrix(kernels, "fp32")
    assert matrix.size == 48 * 128 * bits // 8 + 48 * 4 * 2
    for tokens in (1, 5, 30):
        x = torch.randn(tokens, 128)
        assert_close(kernels.linear(matrix, x), kernels.linear(other, x), 1e-6)
    for row in range(37):
        assert torch.equal(kernels.row(matrix, row), kernels.row(other, row))
        assert torch.equal(kernels.row(matrix, row), weight.expanded()[row].float())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("row", "group"), [(0, 0), (39, 7), (17, 3)])
def test_one_bias_that_does_not_follow_from_its_scale_is_kept(
    kernels: Library, row: int, group: int, bits: int
) -> None:
    weight = centred(40, 256, bits)
    weight.biases[row, group] += 0.25
    assert weight.matrix(kernels).size == 48 * 256 * bits // 8 + 48 * 8 * 4
    assert_affine(kernels, weight, torch.randn(3, 256))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_whose_bias_overflows_keeps_the_biases(kernels: Library, bits: int) -> None:
    weight = centred(40, 64, bits)
    weight.scales[5, 0], weight.biases[5, 0] = 60_000, float("-inf")
    matrix = weight.matrix(kernels, "fp32")
    out = kernels.linear(matrix, torch.ones(2, 64))
    assert not out[:, 5].isfinite().any()
    out[:, 5] = 0
    assert out.isfinite().all()


# In bf16


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


@pytest.fixture
def bf16_kernels(kernels: Library) -> Library:
    if kernels.level not in BF16_LEVELS:
        pytest.skip(f"{kernels.level} has no products in bf16")
    return kernels


@pytest.mark.parametrize(("rows", "columns", "tokens"), MANY)
def test_bf16_weights_and_many_tokens_in_bf16(bf16_kernels: Library, rows: int, columns: int, tokens: int) -> None:
    weight, bias = torch.randn(rows * columns + 1).bfloat16()[1:].view(rows, columns), torch.randn(rows + 1)[1:]
    x = torch.randn((tokens + 20) * columns + 1)[1:].view(tokens + 20, columns)  # more than a few
    matrix = bf16_kernels.dense(weight)
    assert bf16_kernels.set_arithmetic(matrix, "bf16") == "bf16"
    assert_product(bf16_kernels.linear(matrix, x), rounded(x), weight)
    assert_product(bf16_kernels.linear(matrix, x, bias), rounded(x), weight, bias)


@pytest.mark.parametrize("make", [centred, *(partial(affine, dtype=dtype) for dtype in DENSE)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 192, 1536])
def test_affine_weights_in_bf16(bf16_kernels: Library, make: Callable[..., Affine], bits: int, columns: int) -> None:
    for rows in ROWS:
        weight, bias = make(rows, columns, bits, 32), torch.randn(rows)
        matrix = weight.matrix(bf16_kernels, "bf16")
        for tokens in (17, 32, 45, 130):
            x = torch.randn(tokens, columns)
            out = bf16_kernels.linear(matrix, x, bias)
            assert_product(out, rounded(x), rounded(weight.expanded().float()), bias, 1e-4)


def test_coded_weights_in_bf16_give_the_numbers_of_plain_ones(bf16_kernels: Library) -> None:
    weight, x = torch.randn(100, 192).bfloat16(), torch.randn(40, 192)
    coded, plain = bf16_kernels.coded(weight), bf16_kernels.dense(weight)
    assert coded is not None
    outs = []
    for matrix in (coded, plain):
        assert bf16_kernels.set_arithmetic(matrix, "bf16") == "bf16"
        outs.append(bf16_kernels.linear(matrix, x))
    assert outs[0].equal(outs[1])


@pytest.mark.parametrize("rows", [64, 100])
def test_products_in_bf16_do_not_depend_on_the_number_of_tokens(bf16_kernels: Library, rows: int) -> None:
    matrix, x, bias = affine(rows, 1536, 8, 32).matrix(bf16_kernels, "bf16"), torch.randn(80, 1536), torch.randn(rows)
    whole = bf16_kernels.linear(matrix, x, bias)
    for tokens in (17, 40, 64):
        assert bf16_kernels.linear(matrix, x[:tokens].contiguous(), bias).equal(whole[:tokens])


def test_a_few_tokens_are_multiplied_in_fp32(kernels: Library) -> None:
    weight, x = affine(100, 192, 4, 32), torch.randn(16, 192)
    assert_product(kernels.linear(weight.matrix(kernels, "bf16"), x), x, weight.expanded())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("make", [centred, affine, partial(affine, dtype=torch.float32)])
def test_a_few_tokens_may_be_rounded_to_16_bits_and_to_bf16_or_12_bits_where_weights_have_4(
    kernels: Library, make: Callable[..., Affine], bits: int
) -> None:
    weight, x, bias = make(100, 192, bits, 64), torch.randn(32, 192), torch.randn(100)
    matrix = weight.matrix(kernels, "bf16")
    for tokens in (*range(1, 17), *(24, 32)[: 2 * (kernels.level == "avx512_bf16")]):
        some = x[:tokens]
        rounded = kernels.linear(matrix, some, bias, rounds=True)
        if kernels.level == "amx" and tokens >= 4 and bits == 4:
            assert_product(rounded, some, weight.expanded(), bias, 3e-3)
            continue
        if kernels.level in BF16_LEVELS:
            some = some.bfloat16() if kernels.level == "avx512_bf16" and bits == 4 else quantized(some, 127 << 8)
        assert_product(rounded, some.double(), weight.expanded(), bias, 2e-6)


@pytest.mark.parametrize("constants", ["nested_centred", "looked_up"])
def test_rounded_activations_meet_weights_of_every_form(kernels: Library, constants: tensors.Constants) -> None:
    matrix, x = in_fewer_bits(kernels, 100, 256, constants), torch.randn(16, 256)
    x = x.bfloat16().float()  # which both of the above hold
    for tokens in range(1, 17):
        exact = kernels.linear(matrix, x[:tokens])
        assert relative_error(kernels.linear(matrix, x[:tokens], rounds=True), exact) < 1e-4


def in_fewer_bits(kernels: Library, rows: int, columns: int, constants: tensors.Constants) -> Matrix:
    """Weights in 6 bits with groups of 16 columns, or in 4 bits that index a table."""
    if constants == "nested_centred":
        q, factors = torch.randint(0, 64, (rows, columns), dtype=torch.uint8), torch.rand(rows, columns // 256).half()
        scales = torch.randint(-128, 128, (rows, columns // 16)).to(torch.int8)
        return kernels.quants(q, 6, constants, factors, None, scales)
    q, scales = torch.randint(0, 16, (rows, columns), dtype=torch.uint8), torch.rand(rows, columns // 32).half()
    return kernels.quants(q, 4, constants, scales, codes=range(-128, 128, 16))


@pytest.mark.parametrize("columns", [96, 256, 576, 768])
def test_integers_in_tiles_give_the_bits_of_those_in_vectors(kernels: Library, columns: int) -> None:
    if kernels.level != "amx":
        pytest.skip(f"{kernels.level} has no tiles")
    shapes = [(make, bits) for make in (affine, centred) for bits in (4, 8)]
    matrices = [make(100, columns, bits, 32).matrix(kernels, "fp32") for make, bits in shapes]
    for constants in ("nested_centred", "looked_up"):
        if tensors.fits(columns, constants):
            matrices.append(in_fewer_bits(kernels, 100, columns, constants))
    x, bias = torch.randn(16, columns), torch.randn(100)
    for matrix in matrices:
        for tokens in range(1, 17):
            in_tiles = kernels.linear(matrix, x[:tokens], bias)
            kernels.set_level("avx512")
            assert torch.equal(in_tiles, kernels.linear(matrix, x[:tokens], bias))
            kernels.set_level("amx")


def test_an_arithmetic_is_used_where_weights_and_level_allow_it(kernels: Library) -> None:
    bf16 = "bf16" if kernels.level in BF16_LEVELS else "fp32"
    packed = affine(40, 64, 4, 32).matrix(kernels)
    wide, half, narrow = (kernels.dense(torch.randn(40, 64).to(dtype)) for dtype in DENSE)
    assert [kernels.set_arithmetic(packed, name) for name in get_args(Arithmetic)] == ["fp32", bf16, "int8"]
    assert [kernels.set_arithmetic(matrix, "bf16") for matrix in (wide, half, narrow)] == ["fp32", "fp32", bf16]
    assert kernels.set_arithmetic(narrow, "int8") == "fp32"


# Threads


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_the_number_of_threads(kernels: Library, threads: int) -> None:
    for matrix, tokens in (
        (affine(3000, 256, 8, 32).matrix(kernels), 20),
        (centred(3000, 256, 8).matrix(kernels), 20),
        (affine(3000, 256, 4, 32).matrix(kernels, "fp32"), 3),
        (affine(333, 256, 8, 32).matrix(kernels, "fp32"), 150),
        (kernels.dense(torch.randn(333, 300)), 3),
        (kernels.dense(torch.randn(333, 300).half()), 150),
        (affine(333, 256, 4, 32).matrix(kernels, "bf16"), 500),
    ):
        x = torch.randn(tokens, matrix.columns)
        kernels.set_threads(1)
        alone = kernels.linear(matrix, x)
        kernels.set_threads(threads)
        for _ in range(50):
            assert torch.equal(kernels.linear(matrix, x), alone)


def test_two_python_threads_may_compute_at_once(kernels: Library) -> None:
    matrices = [affine(3000, 256, bits, 32).matrix(kernels) for bits in (4, 8)]
    x = torch.randn(3, 256)
    expected = [kernels.linear(matrix, x) for matrix in matrices]
    wrong = []

    def compute(i: int) -> None:
        for _ in range(100):
            if not torch.equal(kernels.linear(matrices[i], x), expected[i]):
                wrong.append(i)

    both = [threading.Thread(target=compute, args=(i,)) for i in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads(kernels: Library) -> None:
    matrix, x = affine(3000, 256, 8, 32).matrix(kernels), torch.randn(1, 256)
    expected = kernels.linear(matrix, x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(kernels.linear(matrix, x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(kernels.linear(matrix, x), expected)


# Small operations


@pytest.mark.parametrize("size", [1, 3, 16, 63, 576, 1537])
def test_norms(kernels: Operations, size: int) -> None:
    x, weight, bias = torch.randn(3, size) * 3 + 1, torch.randn(size), torch.randn(size)
    assert_close(kernels.rms_norm(x, weight, 1e-6), F.rms_norm(x.double(), (size,), weight.double(), 1e-6))
    assert_close(kernels.rms_norm(x, None, 1e-6), F.rms_norm(x.double(), (size,), None, 1e-6))
    expected = F.layer_norm(x.double(), (size,), weight.double(), bias.double(), 1e-5)
    assert_close(kernels.layer_norm(x, weight, bias, 1e-5), expected)
    assert_close(kernels.layer_norm(x, weight, None, 1e-5), F.layer_norm(x, (size,), weight, None, 1e-5), 1e-4)


def test_layer_norm_keeps_its_digits_far_from_zero(kernels: Operations) -> None:
    x = torch.randn(2, 577) + 1000
    assert_close(kernels.layer_norm(x, None, None, 1e-5), F.layer_norm(x.double(), (577,)), 1e-3)


@pytest.mark.parametrize(("head_dim", "dim"), [(64, 64), (64, 16), (80, 20), (6, 6), (128, 128)])
def test_rope_by_halves(kernels: Operations, head_dim: int, dim: int) -> None:
    heads, cos, sin = torch.randn(5, head_dim), torch.randn(dim), torch.randn(dim)
    first, second = heads[:, :dim].chunk(2, -1)
    turned = heads[:, :dim] * cos + torch.cat([second, first], -1) * sin
    expected = torch.cat([turned, heads[:, dim:]], -1)
    kernels.rotate_(heads, cos, sin)
    assert_close(heads, expected, 1e-6)


@pytest.mark.parametrize("size", [1, 5, 16, 1000])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu_squared"])
def test_activations(kernels: Operations, activation: str, size: int) -> None:
    gate, up = torch.randn(size) * 4, torch.randn(size)
    functions = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    functions["relu_squared"] = lambda x: F.relu(x).square()
    expected = functions[activation](gate.double())
    assert_close(kernels.activate(activation, gate), expected, 1e-6)
    assert_close(kernels.activate(activation, gate, up), expected * up, 1e-6)


def test_the_activation_of_gpt_oss(kernels: Operations) -> None:
    gate, up = torch.randn(100) * 8, torch.randn(100) * 8
    bounded = gate.clamp(max=7).double()
    expected = bounded * torch.sigmoid(1.702 * bounded) * (up.clamp(-7, 7) + 1)
    assert_close(kernels.activate("clamped_swiglu", gate, up), expected, 1e-6)
    for spoiled in (gate, up):
        spoiled[3], kept = math.nan, spoiled[3].item()
        assert kernels.activate("clamped_swiglu", gate, up)[3].isnan()  # bounds would make it 7
        spoiled[3] = kept


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 1023), (9, 1025), (20, 5000)])
def test_log_sums_to_seven_digits_of_rows_with_padding(kernels: Library, rows: int, size: int) -> None:
    logits = torch.randn(rows, size + 3) * 30 - 200
    logits[0, 0], logits[:, size:] = 90.0, 999.0
    found = kernels.log_sums(logits.data_ptr(), rows, size, size + 3)
    wanted = logits[:, :size].double().logsumexp(-1).tolist()
    assert found == pytest.approx(wanted, rel=1e-7, abs=2e-7)


def test_exp_to_six_digits(kernels: Operations) -> None:
    x = torch.cat([torch.linspace(-87, 88.7, 100003), torch.randn(1000)])
    expected = x.double().exp()
    assert ((kernels.exp(x).double() - expected).abs() / expected).amax() < 2.5e-7
    special = torch.tensor([float("-inf"), -200.0, -103.0, 0.0, 89.0, float("inf"), float("nan")])
    out = kernels.exp(special)
    assert out[:2].tolist() == [0, 0] and out[3] == 1
    assert abs(out[2] - special[2].exp()) < 2e-45
    assert out[4:6].isinf().all() and out[6].isnan()


# Attention


def attended(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    group = queries.shape[0] // keys.shape[0]
    keys, values = (t.double().repeat_interleave(group, 0) for t in (keys, values))
    scores = (keys @ queries.double()[..., None])[..., 0] * scale  # (heads, positions)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], -1)
    weights = scores.softmax(-1)[:, : keys.shape[1]]
    return (weights[:, None] @ values)[:, 0]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 1023, 1024, 2300])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(9, 3, 64), (8, 1, 80), (4, 4, 128), (5, 1, 6), (14, 2, 40), (2, 2, 100)]
)
def test_attention_of_one_token(kernels: Operations, heads: int, kv_heads: int, head_dim: int, length: int) -> None:
    queries, start = torch.randn(heads, head_dim) * 2, 5
    keys, values = torch.randn(2, kv_heads, start + length + 3, head_dim)
    seen = [t[:, start : start + length] for t in (keys, values)]
    for softcap, sinks in [(None, None), (3.0, None), (None, torch.randn(heads)), (3.0, torch.randn(heads) + 9)]:
        out = kernels.attention(queries, keys, values, start, length, head_dim**-0.5, softcap, sinks)
        assert_close(out, attended(queries, seen[0], seen[1], head_dim**-0.5, softcap, sinks))


@pytest.mark.parametrize("length", [150, 1030, 2300])
@pytest.mark.parametrize("head_dim", [64, 80, 6])
def test_attention_over_keys_and_values_in_fewer_bits(kernels: Operations, head_dim: int, length: int) -> None:
    queries, sinks = torch.randn(6, head_dim), torch.randn(6)
    keys, values = torch.randn(2, 2, length + 10, head_dim)
    for kind in ("fp16", "int8"):
        rounded = [rounded_as(kind, t[:, 7 : 7 + length]) for t in (keys, values)]
        for softcap, added in [(None, None), (3.0, sinks)]:
            out = kernels.attention(queries, keys, values, 7, length, 0.3, softcap, added, kind=kind)
            assert_close(out, attended(queries, rounded[0], rounded[1], 0.3, softcap, added))


def rounded_as(kind: str, vectors: Tensor) -> Tensor:
    if kind == "fp16":
        return vectors.half().float()
    scales = vectors.abs().amax(-1, keepdim=True) / 127
    return (vectors / scales).round() * scales


def test_attention_to_one_key_among_many(kernels: Operations) -> None:
    queries, keys, values = torch.ones(2, 64), torch.zeros(1, 300, 64), torch.randn(1, 300, 64)
    keys[0, 200] = 100  # its score is thousands above the others
    out = kernels.attention(queries, keys, values, 0, 300, 1.0)
    assert_close(out, values[0, 200].expand(2, -1))


@pytest.mark.parametrize("arithmetic", ["fp32", "rounded"])
@pytest.mark.parametrize(("tokens", "before"), [(9, 0), (65, 0), (70, 63), (33, 300)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (8, 1, 80), (2, 2, 6), (7, 1, 128)])
def test_attention_of_many_tokens(
    kernels: Operations, heads: int, kv_heads: int, head_dim: int, tokens: int, before: int, arithmetic: Any
) -> None:
    if arithmetic == "rounded" and kernels.level != "amx":
        pytest.skip("rounds more, or as for fp32: see below")
    queries = torch.randn(tokens, heads, head_dim) * 2 * head_dim**-0.5
    keys, values = torch.randn(2, kv_heads, before + tokens, head_dim)
    for window, softcap, sinks in [(0, 0.0, None), (17, 0.0, None), (0, 3.0, torch.randn(heads)), (100, 0.0, None)]:
        out = kernels.prefill(queries, keys, values, arithmetic, window, softcap, sinks)
        for token, query in enumerate(queries):
            end = before + token + 1
            seen = slice(max(0, end - window) if window else 0, end)
            expected = attended(query, keys[:, seen], values[:, seen], 1.0, softcap or None, sinks)
            assert_close(out[token], expected, 5e-5 if arithmetic == "rounded" else 1e-5)


# Scores of tokens


@pytest.mark.parametrize(("rows", "scored"), [(1, 1), (31, 20), (33, 33), (64, 32), (1000, 970), (9000, 9000)])
@pytest.mark.parametrize(("tokens", "size"), [(1, 0.3), (70, 3.0), (600, 40.0)])
def test_scores_are_the_logarithms_of_a_softmax(
    kernels: Operations, rows: int, scored: int, tokens: int, size: float
) -> None:
    weight = torch.randn(rows, 64)
    weight[rows // 2 :] *= 2  # greater logits than any before
    x, bias, targets = torch.randn(tokens, 64) * size, torch.randn(rows), torch.randint(0, scored, (tokens,))
    for matrix, given in ((kernels.dense(weight), bias), (kernels.dense(weight.half()), None)):
        exact = weight if given is not None else weight.half()
        logits = F.linear(x.double(), exact.double(), None if given is None else given.double())[:, :scored]
        expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        out = kernels.scores(matrix, x, targets, scored, given)
        assert ((out - expected).abs() <= 1e-6 * (1 + logits.abs().amax(-1))).all()


def test_scores_of_packed_weights_are_those_of_their_logits(kernels: Operations) -> None:
    weight, x, targets = affine(500, 96, 8, 32), torch.randn(100, 96), torch.randint(0, 490, (100,))
    matrix = weight.matrix(kernels, "fp32")
    logits = F.linear(x.double(), weight.expanded())[:, :490]
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert_close(kernels.scores(matrix, x, targets, 490), expected, 1e-6)


@pytest.mark.parametrize("scale", [1, 4, 12])
@pytest.mark.parametrize("kind", ["affine", "bf16"])
def test_rounded_scores_are_those_of_exact_logits_where_it_matters(
    kernels: Operations, kind: str, scale: float
) -> None:
    x, targets, bias = torch.randn(150, 96) * scale, torch.randint(0, 2990, (150,)), torch.randn(3000)
    packed = affine(3000, 96, 8, 32)
    weight = packed.expanded() / packed.expanded().std() / 96**0.5
    packed = packed._replace(scales=packed.scales / packed.expanded().std() / 96**0.5)
    packed = packed._replace(biases=(packed.scales.float() * -128).half())
    weight = packed.expanded() if kind == "affine" else weight.bfloat16().double()
    matrix = packed.matrix(kernels, "fp32") if kind == "affine" else kernels.dense(weight.bfloat16())
    logits = F.linear(x.double(), weight, bias.double())[:, :2990]
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    if kind == "affine" and kernels.level in ("avx512", "avx512_bf16"):
        rough = F.linear(quantized(x), weight, bias.double())[:, :2990]
    else:
        rough = F.linear(rounded(x), rounded(weight.float()), bias.double())[:, :2990]
    error = kernels.scores(matrix, x, targets, 2990, bias, "bf16") - expected
    # What is left is the mean error of small shares; as it is, rounding loses what each target's logit loses.
    lost = rough.log_softmax(-1).gather(1, targets[:, None])[:, 0] - expected
    assert error.square().mean() < lost.square().mean() / 50 + 1e-10


@pytest.mark.parametrize("kind", ["affine", "bf16"])
@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
def test_scores_do_not_depend_on_which_thread_sums_up_what(
    kernels: Operations, arithmetic: Arithmetic, kind: str
) -> None:
    packed, x, targets = affine(20_000, 32, 8, 32), torch.randn(80, 32), torch.arange(80)
    matrix = packed.matrix(kernels) if kind == "affine" else kernels.dense(torch.randn(20_000, 32).bfloat16())
    first = kernels.scores(matrix, x, targets, 20_000, None, arithmetic)
    for _ in range(30):
        assert torch.equal(kernels.scores(matrix, x, targets, 20_000, None, arithmetic), first)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 40, 95, 99])
@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["affine", "bf16"])
def test_a_logit_that_is_not_finite_is_no_score(
    kernels: Operations, kind: str, arithmetic: Arithmetic, value: float, row: int
) -> None:
    bias, targets, x = torch.zeros(100), torch.full((70,), 7), torch.randn(70, 32)
    weight = torch.randn(100, 32).bfloat16()
    matrix = affine(100, 32, 8, 32).matrix(kernels) if kind == "affine" else kernels.dense(weight)
    assert kernels.scores(matrix, x, targets, 95, bias, arithmetic).isfinite().all()
    bias[row] = value
    assert not kernels.scores(matrix, x, targets, 95, bias, arithmetic).isfinite().any()
    x[3, 2], bias[row] = value, 0
    finite = kernels.scores(matrix, x, targets, 95, bias, arithmetic).isfinite()
    assert finite.tolist() == [token != 3 for token in range(70)]


def in_words(vectors: Tensor) -> Tensor:
    """As attention in products of 16 bits rounds queries and keys: integers times a scale for each vector."""
    most = vectors.abs().amax(-1, keepdim=True).double()
    steps = (46000 / (vectors.double() / most).norm(dim=-1, keepdim=True)).clamp(max=32767)
    return (vectors.double() / most * steps).round() / steps * most


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (2, 2, 6), (3, 1, 80), (2, 1, 1100)])
@pytest.mark.parametrize(("tokens", "before"), [(9, 0), (64, 64), (70, 300)])
def test_attention_of_many_tokens_whose_products_may_be_rounded(
    kernels: Operations, heads: int, kv_heads: int, head_dim: int, tokens: int, before: int
) -> None:
    queries = torch.randn(tokens, heads, head_dim) * 2 * head_dim**-0.5
    keys, values = torch.randn(2, kv_heads, before + tokens, head_dim)
    rounds = kernels.level == "avx512_bf16" and head_dim <= 1024
    read, read_keys, read_values = queries.double(), keys.half().double(), values.half().double()
    if rounds:
        read, read_keys, read_values = in_words(queries), in_words(keys.half()), values.half().bfloat16().double()
    for window, softcap, sinks in [(0, 0.0, None), (17, 0.0, None), (0, 3.0, torch.randn(heads)), (100, 0.0, None)]:
        out = kernels.prefill(queries, keys, values, "rounded", window, softcap, sinks, kind="fp16")
        for token, query in enumerate(read):
            end = before + token + 1
            seen = slice(max(0, end - window) if window else 0, end)
            weighted = partial(attended, query, read_keys[:, seen], scale=1.0, softcap=softcap or None, sinks=sinks)
            expected = weighted(values=read_values[:, seen])
            if rounds:  # each weight to bf16, then their sum to one
                lost = weighted(values=read_values[:, seen].abs()) * 2**-8 + 1e-6
                assert ((out[token] - expected).abs() <= lost).all()
            else:
                assert_close(out[token], expected, 5e-5)


def test_rounded_weights_add_up_to_one(kernels: Operations) -> None:
    queries, keys = torch.randn(30, 6, 64), torch.randn(2, 200, 64)
    values = torch.randn(2, 1, 64).bfloat16().float().expand(-1, 200, -1).contiguous()
    out = kernels.prefill(queries, keys, values, "rounded")
    assert_close(out, values[:, 0].repeat_interleave(3, 0).expand(30, -1, -1), 1e-6)


def test_the_weights_of_rounded_attention_are_those_of_its_queries_and_keys(kernels: Operations) -> None:
    queries, keys = torch.randn(40, 2, 64) * 0.5, torch.randn(1, 64, 64)
    out = kernels.prefill(queries, keys, torch.eye(64)[None].contiguous(), "rounded").double()
    for token, query in enumerate(queries.double()):
        expected = (query @ keys[0, : 25 + token].double().T).softmax(-1)
        assert ((out[token, :, : 25 + token] / expected - 1).abs() < 2**-7).all()
        assert (out[token, :, 25 + token :] == 0).all()


def test_rounded_attention_to_one_key_among_many(kernels: Operations) -> None:
    queries, keys, values = torch.ones(20, 2, 64), torch.zeros(1, 300, 64), torch.randn(1, 300, 64).bfloat16().float()
    keys[0, 200] = 100
    out = kernels.prefill(queries, keys, values, "rounded")
    assert_close(out, values[0, 200].expand(20, 2, -1), 1e-6)


@pytest.mark.parametrize("sinks", [None, torch.zeros(2)], ids=["", "sinks"])
@pytest.mark.parametrize("arithmetic", ["fp32", "rounded"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_attention_to_a_prompt_keeps_what_is_not_finite_to_its_row(
    kernels: Operations, value: float, arithmetic: str, sinks: Tensor | None
) -> None:
    queries, (keys, values) = torch.randn(40, 2, 64), torch.randn(2, 1, 90, 64)
    queries[7, 1, 5] = value
    out = kernels.prefill(queries, keys, values, arithmetic, sinks=sinks)
    assert not out[7, 1].isfinite().any()
    out[7, 1] = 0
    assert out.isfinite().all()


# Which kernels


def test_more_threads_than_the_kernels_allow_become_the_most_they_allow(kernels: Library) -> None:
    threads = kernels.threads
    kernels.set_threads(1024)
    assert kernels.threads == 256
    kernels.set_threads(threads)
    with pytest.raises(ValueError, match="0 threads"):
        kernels.set_threads(0)


def test_the_variable_switches_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_KERNELS", "off")
    assert tensors.library.__wrapped__() is None


def test_the_variable_names_an_instruction_set(monkeypatch: pytest.MonkeyPatch, kernels: Library) -> None:
    monkeypatch.setenv("GPTCLI_KERNELS", kernels.level)
    again = tensors.library.__wrapped__()
    assert again is not None and again.level == kernels.level


def test_an_unknown_value_of_the_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_KERNELS", "fast")
    with pytest.raises(UsageError, match="GPTCLI_KERNELS=fast is unknown"):
        tensors.library.__wrapped__()


def test_without_the_compiled_file_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "EXTENSION_SUFFIXES", [".absent"])
    assert tensors.library.__wrapped__() is None


def test_kernels_compiled_from_other_sources_are_refused_and_not_called(
    monkeypatch: pytest.MonkeyPatch, kernels: Library
) -> None:
    path = bindings.built_file()
    assert path is not None
    for name, value in {
        "_INTERFACE": 1,
        "_STRUCTURES": (bindings.Frame, *bindings._STRUCTURES[1:]),  # as if Op had other fields
        "_SIGNATURES": bindings._SIGNATURES | {"gptcli_is_to_come": (None, [])},
    }.items():
        with monkeypatch.context() as patch, pytest.raises(UsageError, match="another version"):
            patch.setattr(bindings, name, value)
            Library(path)


def test_what_python_knows_of_the_header_has_a_number_of_its_own() -> None:
    source = Path(bindings.__file__).with_name("c") / "kernels.h"
    header = re.sub(r"(?s)/\*.*?\*/", "", source.read_text())
    structs = "Op|Rotation|Row|State|Frame|Choice|Draw|Matrix|Attention|Prefill"
    declared = rf"(?s)EXPORT [^;]*;|typedef enum {{[^}}]*}}[^;]*;|typedef struct (?:{structs}) {{.*?\n}} \w+;"
    known = re.findall(declared, header)
    number = zlib.crc32(" ".join(" ".join(known).split()).encode())
    [written] = re.findall(r"INTERFACE = (\w+)", header)
    assert (written, bindings._INTERFACE) == (hex(number), number), f"write {number:#x} into kernels.h and bindings.py"


@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_the_activations_costs_little(kernels: Library, bits: int) -> None:
    weight, x = affine(577, 576, bits, 32), torch.randn(5, 576)
    assert_product(kernels.linear(weight.matrix(kernels), x), x, weight.expanded(), relative=0.02)


def test_many_matrices_come_and_go(kernels: Library) -> None:
    weights = [affine(64, 512, 8, 32) for _ in range(8)]
    x = torch.randn(1, 512)
    matrices = [weight.matrix(kernels) for weight in weights]
    for _ in range(20):
        matrices = [weight.matrix(kernels) for weight in weights]
    for weight, matrix in zip(weights, matrices, strict=True):
        assert_product(kernels.linear(matrix, x), quantized(x), weight.expanded())
