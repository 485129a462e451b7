"""How fast a long text is scored, beside reading the same windows as prompts, which computes logits once a window.

python benchmarks/score.py FILE [--contexts 512 2048 4096 8192] [--tokens 8192] [--repeats 3] [--dtype fp32]

Both run windows of the same tokens, overlaps included, in turns. Rates are medians, of tokens that windows run. On a
busy machine, --threads 1 --cpu counts a thread's own time, without what others take.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import cast, get_args

import gptcli
from gptcli.generation import scoring
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.settings import Dtype


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, default=8192, help="of the text that are scored, or one context")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto", choices=get_args(Dtype))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    clock = time.thread_time if options.cpu else time.perf_counter
    text = options.file.read_text(encoding="utf-8")
    print("| context | windows | prefill, tok/s | score, tok/s | ratio | perplexity |\n|---|---|---|---|---|---|")
    for context in options.contexts:
        dtype = cast(Dtype, options.dtype)
        lm = gptcli.load(options.model, ctx_size=context, dtype=dtype, threads=options.threads)
        ids = lm.tokenizer.encode(text)[: max(options.tokens, context) + 1]
        stride = lm.longest_stride - lm.longest_stride // 8
        windows = list(scoring.windows(len(ids), context, stride))
        ran = sum(window.end - 1 - window.begin for window in windows)
        cache = lm.engine.new_cache()
        taken: tuple[list[float], list[float]] = [], []
        for _ in range(options.repeats):
            started = clock()
            for window in windows:
                cache.truncate(0)
                lm.engine.prefill(ids[window.begin : window.end - 1], cache)
            taken[0].append(clock() - started)
            started = clock()
            found = scoring.score(lm.engine, lm.tokenizer, ids, stride=stride, size=1)
            taken[1].append(clock() - started)
        prefill, score = (ran / statistics.median(each) for each in taken)
        ratio = statistics.median(a / b for a, b in zip(*taken, strict=True))
        print(
            f"| {context} | {len(windows)} | {prefill:.0f} | {score:.0f} | {ratio:.2f} | {found.perplexity:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
