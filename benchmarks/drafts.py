"""Drafting with a smaller model, or from the text itself, beside not drafting, in turns. Median tokens per second.

python benchmarks/drafts.py --model NAME [--draft-model NAME] [--speculate 4] [--dtype fp32] [--repeats 5]

Greedy, after a short prompt. Says whether the ids were the same: they may differ where kernels round more than fp32.
"""

from __future__ import annotations

import argparse
import statistics

import gptcli
from gptcli.models.catalog import DEFAULT_MODEL

PROMPT = "Q: What is the water cycle?\nA:"


def main() -> None:
    """Prints a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--draft-model")
    parser.add_argument("--speculate", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ways = (
        gptcli.load(options.model, dtype=options.dtype, device="cpu"),
        gptcli.load(
            options.model, dtype=options.dtype, device="cpu", speculate=options.speculate,
            draft_model=options.draft_model,
        ),
    )  # fmt: skip

    def run(lm: gptcli.LanguageModel) -> gptcli.Finished:
        *_, last = lm.generate(PROMPT, max_tokens=options.tokens, temperature=0.0, ignore_eos=True)
        assert isinstance(last, gptcli.Finished)
        return last

    pairs = [(run(ways[0]), run(ways[1])) for _ in range(options.repeats + 1)][1:]
    plain, drafted = ([one.usage.decode_tokens_per_s for one in side] for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in zip(plain, drafted, strict=True))
    last = pairs[-1][1].usage
    same = "the same" if all(a.ids == b.ids for a, b in pairs) else "others"
    print(
        f"{statistics.median(plain):.0f} tok/s without, {statistics.median(drafted):.0f} with drafts, "
        f"ratio {ratio:.2f}; {last.kept_tokens} of {last.drafted_tokens} kept; ids: {same}"
    )


if __name__ == "__main__":
    main()
