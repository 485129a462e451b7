"""Decoding behind a long prompt, with keys and values in fp32, fp16 and 8 bits, in turns.

python benchmarks/kv.py [--context 7900]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import gptcli

STEPS, TURNS = 8, 9


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--context", type=int, default=7900)
    context = parser.parse_args().context
    texts = {}
    for kind in ("fp32", "fp16", "int8"):
        engine = gptcli.load(kv=kind).full_engine()
        cache = engine.new_cache()
        engine.prefill([(7 * position + 3) % 40_000 for position in range(context)], cache)
        texts[kind] = engine, cache
    seconds = {kind: list[float]() for kind in texts}
    for _ in range(TURNS):
        for kind, (engine, cache) in texts.items():
            started = time.perf_counter()
            for token in range(STEPS):
                engine.decode(token, cache)
            seconds[kind].append((time.perf_counter() - started) / STEPS)
            cache.truncate(context)
    print(
        f"behind {context} tokens\n\n| keys and values | bytes a token | ms a token | beside fp32 |\n|---|---|---|---|"
    )
    for kind, (engine, _) in texts.items():
        ratio = median(a / b for a, b in zip(seconds["fp32"], seconds[kind], strict=True))
        size = engine.bytes_a_token(1) - engine.bytes_a_token(0)
        print(f"| {kind} | {size} | {1000 * median(seconds[kind]):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
