"""A mixture of experts beside a dense model that reads as many bytes a token: decode and prefill, in turns.

python benchmarks/mixtures.py [--layers 12 --hidden 1024 --width 384 --experts 64 --chosen 8] [--only int4]

Both have random weights and are loaded in one process. A share is the bytes that decoding reads a second, the mixture's
beside the dense model's. Ratios are medians of pairs, with their quartiles. --keep DIR leaves the models there. On a
busy machine, --threads 1 --cpu counts a thread's own time, without what others take.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from random_model import VOCABULARY, Shape, write_model

import gptcli
from gptcli.settings import Quantize

DECODE_TOKENS = 32
WEIGHTS: dict[str, Quantize] = {"bf16": "auto", "int8": "int8", "int4": "int4", "mxfp4": "auto"}


def rates(lm: gptcli.LanguageModel, prompt_tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Tokens a second in prefill and then in decode, of arbitrary tokens."""
    engine = lm.full_engine()
    cache = engine.new_cache()
    prompt = [(7919 * position + 3) % VOCABULARY for position in range(prompt_tokens)]
    started = clock()
    engine.prefill(prompt, cache)
    prefilled = clock()
    for token in prompt[:DECODE_TOKENS]:
        engine.decode(token, cache)
    return prompt_tokens / (prefilled - started), DECODE_TOKENS / (clock() - prefilled)


def ratio(pairs: list[tuple[float, float]]) -> str:
    """The median of the second beside the first, with the quartiles."""
    low, middle, high = statistics.quantiles((b / a for a, b in pairs), n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def row(weights: str, shapes: dict[str, Shape], directory: Path, options: argparse.Namespace) -> list[str]:
    """The table's cells for one kind of weights."""
    models = []
    for kind, shape in shapes.items():
        path = directory / f"{kind}-{'mxfp4' if weights == 'mxfp4' else 'bf16'}"
        if not path.exists():
            write_model(path, shape, mxfp4=weights == "mxfp4")
        models.append(gptcli.load(path, device="cpu", quantize=WEIGHTS[weights], threads=options.threads))
    sizes = [lm.full_engine().bytes_a_token(0) for lm in models]
    clock = time.process_time if options.cpu else time.perf_counter
    runs = [[rates(lm, options.prompt, clock) for lm in models] for _ in range(options.repeats + 1)]
    pairs = runs[1:]  # the first warms up
    prefills = [(dense[0], mixture[0]) for dense, mixture in pairs]
    decodes = [(dense[1], mixture[1]) for dense, mixture in pairs]
    read = [(dense * sizes[0], mixture * sizes[1]) for dense, mixture in decodes]
    cells = [weights, models[1].full_engine().kernels, " / ".join(f"{size / 1e6:.0f}" for size in sizes)]
    for speeds, compared in ((decodes, read), (prefills, prefills)):
        cells += [f"{statistics.median(each):.0f}" for each in zip(*speeds, strict=True)] + [ratio(compared)]
    return cells


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    defaults = {"layers": 12, "hidden": 1024, "width": 384, "experts": 64, "chosen": 8, "repeats": 9, "prompt": 512}
    for name, default in {**defaults, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    common = {"layers": options.layers, "hidden": options.hidden, "heads": 16, "kv_heads": 4}
    shapes = {
        "dense": Shape(mlp=options.width * options.chosen, **common),
        "mixture": Shape(mlp=options.width, experts=options.experts, chosen=options.chosen, **common),
    }
    print("| weights | kernels | MB a token | decode: dense | mixture | share | prefill: dense | mixture | ratio |")
    print("|---" * 9 + "|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for weights in options.only:
            print("| " + " | ".join(row(weights, shapes, options.keep or Path(temporary), options)) + " |", flush=True)


if __name__ == "__main__":
    main()
