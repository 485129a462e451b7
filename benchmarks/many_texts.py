"""Different prompts together and alone, and short lines scored together and one by one, in turns. Medians.

python benchmarks/many_texts.py [--model NAME] [--quantize auto] [--dtype auto] [--threads N] [--lines N] [--repeats N]

Generates 64 tokens after each prompt, with the default settings; prompts count, as they do for a user. With one thread
it is the process's CPU time that counts, which others on the machine change little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from random import Random

import gptcli
from gptcli import LanguageModel, Request
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.runtime.engine import PromptCache

PROMPTS = (
    "In a small town there lived a clockmaker who",
    "The history of bread begins",
    "def fibonacci(n):",
    "Dear Sir or Madam, I am writing",
    "The capital of France is Paris, and its",
    "Once upon a time, in a forest,",
    "Water boils at a temperature",
    "My favourite recipe is a soup of",
)
TOKENS = 64
WORDS = "the cat sat on a mat and looked at many small birds while rain fell over green hills of a town".split()


def generate(lm: LanguageModel, prompts: Sequence[str]) -> None:
    """Completes prompts together."""
    for _ in lm.complete_many(Request(prompt, max_tokens=TOKENS, seed=1, ignore_eos=True) for prompt in prompts):
        pass


def seconds(lm: LanguageModel, work: Callable[[], object]) -> float:
    """What some work takes."""
    clock = time.process_time if lm.full_engine().threads == 1 else time.perf_counter
    started = clock()
    work()
    return clock() - started


def main() -> None:
    """Prints Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--quantize", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    lm = gptcli.load(
        options.model, device="cpu", quantize=options.quantize, dtype=options.dtype, threads=options.threads
    )
    print(f"{lm.name}, {lm.full_engine().kernels}, {lm.full_engine().threads} threads, --quantize {options.quantize}\n")
    print("| prompts | tok/s | beside one |\n|---|---|---|")
    counts = (1, 2, 4, 8, 16, 32)

    def rate(count: int) -> float:
        return count * TOKENS / seconds(lm, lambda: generate(lm, (PROMPTS * 4)[:count]))

    rates = [[rate(count) for count in counts] for _ in range(options.repeats + 1)][1:]
    for count, own in zip(counts, zip(*rates, strict=True), strict=True):
        ratio = statistics.median(each / one for each, (one, *_) in zip(own, rates, strict=True))
        print(f"| {count} | {statistics.median(own):.0f} | {ratio:.2f} |")
    random = Random(0)
    lines = [" ".join(random.choices(WORDS, k=random.randint(5, 14))) for _ in range(options.lines)]
    cache = PromptCache()

    def one_by_one() -> None:
        for line in lines:
            lm.score(line, cache=cache)

    def all_at_once() -> None:
        list(lm.score_many(lines))

    pairs = [(seconds(lm, one_by_one), seconds(lm, all_at_once)) for _ in range(options.repeats + 1)][1:]
    alone, together = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / many for one, many in pairs)
    print(f"\n{options.lines} lines scored one by one in {alone:.2f} s, together in {together:.2f} s: {ratio:.2f}")


if __name__ == "__main__":
    main()
