"""A mixture of experts beside a dense model that reads the same matrices a token: decode, and its share of the bandwidth.

python benchmarks/mixtures.py [--layers 12 --hidden 1024 --width 384 --experts 64 --chosen 8] [--repeats 9] [--only int4]

Both are of random weights, are loaded in one process and take turns. "share": bytes a token times tokens a second, the
mixture's beside the dense model's. Ratios are medians of pairs, with their quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from random_model import Shape, write_model

import gptcli
from gptcli.runtime.bench import weight_bytes

DECODE_TOKENS = 32
WEIGHTS = {"bf16": "auto", "int8": "int8", "int4": "int4", "mxfp4": "auto"}


def rates(lm: gptcli.LanguageModel, prompt_tokens: int) -> tuple[float, float]:
    """Tokens a second in prefill and then in decode, of arbitrary tokens."""
    engine = lm.engine
    cache = engine.new_cache()
    prompt = [(7919 * position + 3) % engine.decoder.config.vocab_size for position in range(prompt_tokens)]
    started = time.perf_counter()
    engine.prefill(prompt, cache)
    prefilled = time.perf_counter()
    for token in prompt[:DECODE_TOKENS]:
        engine.decode(token, cache)
    return prompt_tokens / (prefilled - started), DECODE_TOKENS / (time.perf_counter() - prefilled)


def quartiles(pairs: list[tuple[float, float]], of: Callable[[float, float], float]) -> str:
    """The median of pairs, with the quartiles."""
    low, middle, high = statistics.quantiles((of(*pair) for pair in pairs), n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    defaults = {"layers": 12, "hidden": 1024, "width": 384, "experts": 64, "chosen": 8, "repeats": 9, "prompt": 512}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--keep", type=Path, help="a directory for the models; they stay there")
    options = parser.parse_args()
    common = {"layers": options.layers, "hidden": options.hidden, "heads": 16, "kv_heads": 4}
    mixture = Shape(mlp=options.width, experts=options.experts, chosen=options.chosen, **common)
    dense = Shape(mlp=options.width * options.chosen, **common)
    print("| weights | kernels | MB a token | decode: dense | mixture | share | prefill: dense | mixture | ratio |")
    print("|---" * 9 + "|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for weights in options.only:
            models = []
            for kind, shape in (("dense", dense), ("mixture", mixture)):
                path = (options.keep or Path(temporary)) / f"{kind}-{'mxfp4' if weights == 'mxfp4' else 'bf16'}"
                if not path.exists():
                    write_model(path, shape, mxfp4=weights == "mxfp4")
                models.append(gptcli.load(path, device="cpu", quantize=WEIGHTS[weights]))
            sizes = [weight_bytes(lm.engine.decoder) for lm in models]
            pairs = [[rates(lm, options.prompt) for lm in models] for _ in range(options.repeats + 1)][1:]
            prefills = [(one[0], other[0]) for one, other in pairs]
            decodes = [(one[1], other[1]) for one, other in pairs]
            cells = [weights, models[1].engine.kernels, " / ".join(f"{size / 1e6:.0f}" for size in sizes)]
            cells += [f"{statistics.median(rates):.0f}" for rates in zip(*decodes, strict=True)]
            cells.append(quartiles(decodes, lambda one, other: other * sizes[1] / (one * sizes[0])))
            cells += [f"{statistics.median(rates):.0f}" for rates in zip(*prefills, strict=True)]
            cells.append(quartiles(prefills, lambda one, other: other / one))
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
