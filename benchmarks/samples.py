"""Several samples of one prompt, decoded together and one after another, in turns. Median tokens per second of all.

python benchmarks/samples.py [--model NAME] [--quantize auto] [--dtype auto] [--counts 1 2 4 8 16] [--repeats 5]

Samples 64 tokens after a prompt of 64, with the default settings. The prompt's time counts, as it does for a user.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import gptcli
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.runtime.engine import PromptCache
from gptcli.settings import SamplingConfig, StopConfig

PROMPT_TOKENS, SAMPLE_TOKENS = 64, 64
STOP = StopConfig(max_tokens=SAMPLE_TOKENS, ignore_eos=True)


def rate(streams: Iterator[Any], count: int) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    for events in streams:
        for _ in events:
            pass
    return count * SAMPLE_TOKENS / (time.perf_counter() - started)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--quantize", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    lm = gptcli.load(
        options.model, device="cpu", quantize=options.quantize, dtype=options.dtype, threads=options.threads
    )
    prompt = lm.tokenizer.encode("In a small town there lived a clockmaker who had many clocks. " * 8)[:PROMPT_TOKENS]

    def together(count: int) -> Iterator[Any]:
        return lm.streams(prompt, SamplingConfig(seed=1).for_samples(count), STOP)

    def in_turn(count: int) -> Iterator[Any]:
        cache = PromptCache()  # keeps the prompt for the next sample
        return (lm.stream(prompt, own, STOP, cache=cache) for own in SamplingConfig(seed=1).for_samples(count))

    print(f"{lm.name}, {lm.full_engine().kernels}, {lm.full_engine().threads} threads, --quantize {options.quantize}\n")
    print("| samples | together, tok/s | one after the other, tok/s | ratio |\n|---|---|---|---|")
    for count in options.counts:
        rates = [(rate(together(count), count), rate(in_turn(count), count)) for _ in range(options.repeats + 1)][1:]
        shared, single = zip(*rates, strict=True)
        ratio = statistics.median(one / other for one, other in rates)
        print(
            f"| {count} | {statistics.median(shared):.0f} | {statistics.median(single):.0f} | {ratio:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
