"""Coded matrices have the same bits as plain ones, and so do their products, on every instruction set."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from gptcli.kernels.bindings import Level, Matrix
from gptcli.kernels.memory import Memory
from gptcli.kernels.tensors import Library
from tests.parity.test_families import needed_library

DTYPES = [torch.bfloat16, torch.float32]
BITS = {torch.bfloat16: 12, torch.float32: 28}


@pytest.fixture
def kernels() -> Iterator[Library]:
    loaded = needed_library()
    if "avx512" not in loaded.levels():
        pytest.skip("no kernels here decode faster than they read")
    before, threads = loaded.level, loaded.threads
    loaded.set_level("avx512")
    loaded.set_threads(2)
    torch.manual_seed(0)
    yield loaded
    loaded.set_level(before)
    loaded.set_threads(threads)


def weights_of(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Normally distributed weights, as models have, in rows of different magnitude."""
    return (torch.randn(rows, columns) * torch.rand(rows, 1) * 0.1).to(dtype)


def coded(kernels: Library, weights: Tensor) -> Matrix:
    matrix = kernels.coded(weights)
    assert matrix is not None and matrix.weights is None
    return matrix


def bits(values: Tensor) -> Tensor:
    return values.float().view(torch.int32)


def decoded(kernels: Library, matrix: Matrix) -> Tensor:
    return torch.stack([kernels.row(matrix, row) for row in range(matrix.rows)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (16, 64), (17, 128), (50, 576), (16, 64 * 40)])
def test_every_weight_comes_back_bit_for_bit(kernels: Library, rows: int, columns: int, dtype: torch.dtype) -> None:
    weights = torch.randn(rows, columns).to(dtype)
    weights[weights.abs() < 0.01] = 0.5  # so that no upper byte is rare
    assert bits(decoded(kernels, coded(kernels, weights))).equal(bits(weights))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rare_numbers_come_back_bit_for_bit_wherever_they_are(kernels: Library, dtype: torch.dtype) -> None:
    weights = weights_of(80, 640, dtype)
    tiny = torch.finfo(dtype).tiny
    rare = [0.0, -0.0, tiny, tiny / 4, -tiny / 2, 1e30, -1e-30, float("inf"), -float("inf"), float("nan")]
    for index, number in enumerate(rare):
        weights[index * 8, index * 61] = number
    weights[0, 0], weights[-1, -1], weights[15, -1], weights[16, 0] = 1e20, -1e20, 1e-20, -1e-20
    matrix = coded(kernels, weights)
    assert bits(decoded(kernels, matrix)).equal(bits(weights))
    for level in kernels.levels():
        kernels.set_level(level)
        assert kernels.linear(matrix, torch.ones(20, 640))[:, 1].equal(
            kernels.linear(kernels.dense(weights), torch.ones(20, 640))[:, 1]
        )


@pytest.mark.parametrize("level", get_args(Level))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 16, 17, 40, 530])
def test_products_have_the_bits_of_a_plain_matrix(
    kernels: Library, tokens: int, dtype: torch.dtype, level: Level
) -> None:
    weights, x, bias = weights_of(100, 576, dtype), torch.randn(tokens, 576), torch.randn(100)
    weights[torch.rand(100, 576) < 2e-4] *= 1e-20  # so that some records are listed
    matrix, plain = coded(kernels, weights), kernels.dense(weights)
    if level not in kernels.levels():
        pytest.skip(f"this processor has no {level}")
    kernels.set_level(level)
    assert kernels.linear(matrix, x, bias).equal(kernels.linear(plain, x, bias))
    assert kernels.linear(matrix, x).equal(kernels.linear(plain, x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
def test_rows_that_are_no_multiple_of_a_tile_are_multiplied_too(
    kernels: Library, tokens: int, dtype: torch.dtype
) -> None:
    weights, x = weights_of(51, 192, dtype), torch.randn(tokens, 192)
    plain = kernels.linear(kernels.dense(weights), x)
    torch.testing.assert_close(kernels.linear(coded(kernels, weights), x), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_the_number_of_threads(kernels: Library, threads: int, dtype: torch.dtype) -> None:
    weights, x = weights_of(2000, 640, dtype), torch.randn(1, 640)
    weights[torch.rand(2000, 640) < 1e-4] *= 1e-20
    matrix = coded(kernels, weights)
    wanted = kernels.linear(matrix, x)
    kernels.set_threads(threads)
    again = coded(kernels, weights)
    for one in (matrix, again):
        assert kernels.linear(one, x).equal(wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_coded_matrix_is_smaller_and_says_by_how_much(kernels: Library, dtype: torch.dtype) -> None:
    signs, exponents = torch.randn(512, 1024).sign(), torch.randint(0, 16, (512, 1024))
    weights = (signs * 2.0**-exponents).to(dtype)  # with sixteen different upper bytes
    size = coded(kernels, weights).size
    assert size == pytest.approx(512 * 1024 * BITS[dtype] / 8, rel=0.001)
    weights[::8, 0] = 1e30  # 64 of 8192 records spell out their upper bytes
    assert coded(kernels, weights).size - size == 64 * (64 + 4)


def test_weights_that_coding_would_not_shrink_are_not_coded(kernels: Library) -> None:
    numbers = torch.randint(-(1 << 15), 1 << 15, (64, 640)).short().view(torch.bfloat16)
    assert kernels.coded(numbers) is None  # exponents of all sizes
    assert kernels.coded(weights_of(64, 640, torch.float16)) is None
    assert kernels.coded(weights_of(64, 96, torch.bfloat16)) is None  # 96 columns are no multiple of a record
    for level in ("portable", "avx2"):
        kernels.set_level(level)
        assert kernels.coded(weights_of(64, 640, torch.bfloat16)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_is_restored_from_its_record_and_a_copy_of_its_weights(kernels: Library, dtype: torch.dtype) -> None:
    weights, x = weights_of(100, 640, dtype), torch.randn(1, 640)
    weights[torch.rand(100, 640) < 1e-4] *= 1e-20
    matrix = coded(kernels, weights)
    copy = Memory(matrix.size)
    ctypes.memmove(copy.address, matrix.address, matrix.size)
    record, wanted = kernels.struct_bytes(matrix), kernels.linear(matrix, x)
    del matrix
    restored = kernels.restored(record, copy.address, 100, 640, copy)
    assert kernels.linear(restored, x).equal(wanted)
    assert bits(decoded(kernels, restored)).equal(bits(weights))


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_damage_in_a_copy_of_the_weights_changes_numbers_and_nothing_else(kernels: Library, tokens: int) -> None:
    weights = weights_of(100, 640, torch.bfloat16)
    weights[torch.rand(100, 640) < 2e-4] *= 1e-20
    matrix = coded(kernels, weights)
    copy = Memory(matrix.size)
    ctypes.memset(copy.address, 255, matrix.size)
    restored = kernels.restored(kernels.struct_bytes(matrix), copy.address, 100, 640, copy)
    assert kernels.linear(restored, torch.randn(tokens, 640)).shape == (tokens, 100)
    assert not kernels.row(restored, 99).equal(weights[99].float())
    ctypes.memset(copy.address, 0, matrix.size)
    assert kernels.linear(restored, torch.randn(tokens, 640)).shape == (tokens, 100)
