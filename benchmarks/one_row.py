"""Measures the linear layers of one token: every matrix of the default model times one row, in several ways.

python benchmarks/one_row.py [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536)] * 30 + [(49152, 576)]


def median_ms(run: Callable[[], object]) -> float:
    """Median milliseconds of a call, after a warm-up call."""
    run()
    times = []
    for _ in range(9):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


@torch.inference_mode()
def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int)
    if threads := parser.parse_args().threads:
        torch.set_num_threads(threads)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n| as | fp32, ms | bf16, ms |\n|---|---|---|"
    )
    columns = []
    for dtype in (torch.float32, torch.bfloat16):
        matrices = [torch.randn(shape).to(dtype) for shape in SHAPES]
        rows = {width: torch.randn(1, width).to(dtype) for width in (576, 1536)}

        def sliced(slices: int, matrices: list[torch.Tensor] = matrices, rows: dict[int, torch.Tensor] = rows) -> None:
            for matrix in matrices:
                width = matrix.shape[1]
                torch.bmm(matrix.view(slices, -1, width), rows[width].t().expand(slices, width, 1))

        def plain(matrices: list[torch.Tensor] = matrices, rows: dict[int, torch.Tensor] = rows) -> None:
            for matrix in matrices:
                F.linear(rows[matrix.shape[1]], matrix)

        def vector(matrices: list[torch.Tensor] = matrices, rows: dict[int, torch.Tensor] = rows) -> None:
            for matrix in matrices:
                torch.mv(matrix, rows[matrix.shape[1]][0])

        ways: dict[str, Callable[[], None]] = {"`F.linear`": plain, "`torch.mv`": vector}
        for slices in (2, 12, 16, 32, 64):
            ways[f"`torch.bmm`, {slices} slices"] = partial(sliced, slices)
        columns.append({name: median_ms(run) for name, run in ways.items()})
    for name in columns[0]:
        print(f"| {name} | {columns[0][name]:.1f} | {columns[1][name]:.1f} |")


if __name__ == "__main__":
    main()
