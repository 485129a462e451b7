"""Decode speed while another process keeps one core busy, for several settings of OpenMP's spinning.

python benchmarks/busy_core.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

TOKENS, REPEATS = 24, 3


def measure() -> None:
    """Prints the median tok/s on an idle and on a half-busy machine. Runs once per process, for one setting."""
    import gptcli

    engine = gptcli.load(device="cpu", dtype="fp32", quantize="none").engine

    def rate() -> float:
        cache = engine.new_cache()
        engine.prefill(list(range(20, 60)), cache)
        started = time.perf_counter()
        for _ in range(TOKENS):
            engine.decode(30, cache)
        return TOKENS / (time.perf_counter() - started)

    rate()
    idle = statistics.median(rate() for _ in range(REPEATS))
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        busy = statistics.median(rate() for _ in range(REPEATS))
    finally:
        spinning.kill()
    print(f"{idle:.0f} | {busy:.0f} |")


def main() -> None:
    """Prints a Markdown table."""
    print("| `GOMP_SPINCOUNT` | idle, tok/s | one core busy, tok/s |\n|---|---|---|")
    for count in ("100", "300", "1000", "2000", "10000", "100000"):
        command = [sys.executable, __file__, "measure"]
        done = subprocess.run(command, env=os.environ | {"GOMP_SPINCOUNT": count}, capture_output=True, text=True)
        print(f"| {count} | {done.stdout.strip()}")


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
