"""Measures the compiled kernels alone: bandwidth in decoding, and arithmetic in prefill beside torch in fp32.

python benchmarks/kernels.py [--threads 2] [--megabytes 128]

GPTCLI_KERNELS chooses the instruction set. Decoding reads more matrices than fit into a cache. Results are medians of
runs in turns: coded and plain matrices in decoding, the kernels and torch in prefill.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from gptcli.kernels.bindings import Matrix
from gptcli.kernels.tensors import Library, library

DENSE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
AFFINE = {"int8": 8, "int4": 4}
SHAPES = ((576, 1536), (49152, 576), (8192, 2048))
CODED = ("fp32", "bf16")
PREFILL, REPEATS, GROUP = 512, 9, 32


def matrix(kernels: Library, kind: str, rows: int, columns: int) -> Matrix:
    """Random weights."""
    if kind in DENSE:
        return kernels.dense(torch.randn(rows, columns).to(DENSE[kind]))
    bits = AFFINE[kind]
    packed = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8)
    scales, biases = torch.rand(2, rows, columns // GROUP).half().unbind()
    return kernels.affine(packed, scales, biases, bits)


def medians(*functions: Callable[[], object]) -> list[float]:
    """The median seconds of each function; they run in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def decode(kernels: Library, kind: str, rows: int, columns: int, megabytes: int) -> None:
    """Prints GB/s and microseconds for one token."""
    first = matrix(kernels, kind, rows, columns)
    copies = max(1, megabytes * 1_000_000 // first.size)
    weights, x = [first, *(matrix(kernels, kind, rows, columns) for _ in range(copies - 1))], torch.randn(1, columns)
    seconds = medians(lambda: [kernels.linear(each, x) for each in weights])[0] / copies
    print(f"decode {rows} x {columns} {kind}: {first.size / seconds / 1e9:.1f} GB/s, {seconds * 1e6:.0f} us")


def decode_coded(kernels: Library, kind: str, rows: int, columns: int, megabytes: int) -> None:
    """Prints microseconds for one token with coded and plain matrices, and the speed of coding."""
    copies = max(1, megabytes * 1_000_000 // (rows * columns * DENSE[kind].itemsize))
    tensors = [torch.randn(rows, columns).to(DENSE[kind]) for _ in range(copies)]
    plain, x = [kernels.dense(tensor) for tensor in tensors], torch.randn(1, columns)
    started = time.perf_counter()
    coded = [matrix for tensor in tensors if (matrix := kernels.coded(tensor)) is not None]
    coding = time.perf_counter() - started
    if not coded:
        return
    seconds = medians(*(lambda of=of: [kernels.linear(each, x) for each in of] for of in (plain, coded)))
    plain_us, coded_us = (f"{taken / copies * 1e6:.0f} us" for taken in seconds)
    speed = sum(each.size for each in plain) / coding / 1e9
    print(f"decode {rows} x {columns} {kind}, coded: {coded_us}, plain {plain_us}; coded at {speed:.1f} GB/s")


def prefill(kernels: Library, kind: str, rows: int, columns: int) -> None:
    """Prints GFLOP/s for many tokens, beside torch in fp32."""
    weights, x, plain = matrix(kernels, kind, rows, columns), torch.randn(PREFILL, columns), torch.randn(rows, columns)
    ours, theirs = medians(lambda: kernels.linear(weights, x), lambda: F.linear(x, plain))
    work = 2 * PREFILL * rows * columns / 1e9
    print(f"prefill {PREFILL} {rows} x {columns} {kind}: {work / ours:.0f} GFLOP/s, torch {work / theirs:.0f}")


def main() -> None:
    """All kinds and shapes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=128)
    options = parser.parse_args()
    kernels = library()
    if kernels is None:
        sys.exit("the kernels are not built, or switched off")
    kernels.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    print(f"{kernels.level}, {options.threads} threads")
    for rows, columns in SHAPES:
        for kind in (*DENSE, *AFFINE):
            decode(kernels, kind, rows, columns, options.megabytes)
        for kind in CODED:
            decode_coded(kernels, kind, rows, columns, options.megabytes)
        for kind in AFFINE:
            prefill(kernels, kind, rows, columns)


if __name__ == "__main__":
    main()
