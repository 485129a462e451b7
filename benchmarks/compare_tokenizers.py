"""Time and peak memory of `gptcli tokenize` on a large file, beside the tokenizers library, in turns.

python benchmarks/compare_tokenizers.py FILE TOKENIZER.json [RUNS]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

LIBRARY = """
import sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
with open(sys.argv[1], encoding="utf-8", newline="") as file:
    ids = tokenizer.encode(file.read(), add_special_tokens=False).ids
print(len(ids) if sys.argv[3] == "--count" else " ".join(map(str, ids)))
"""


def measure(command: list[str]) -> tuple[float, float, bytes]:
    """Seconds, peak memory in MB, and the first bytes of the output."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, output


def main() -> None:
    """Prints median times and the greatest peaks."""
    file, tokenizer = sys.argv[1:3]
    runs = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    for view in ("--count", "--ids"):
        commands = {
            "library": [sys.executable, "-c", LIBRARY, file, tokenizer, view],
            "gptcli": [sys.executable, "-m", "gptcli", "tokenize", "-m", tokenizer, view, "--special", file],
        }
        found: dict[str, list[tuple[float, float, bytes]]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                found[name].append(measure(command))
        assert len({output for results in found.values() for *_, output in results}) == 1, "the ids differ"
        for name, results in found.items():
            seconds = statistics.median(seconds for seconds, *_ in results)
            print(f"{view:<8} {name:<8} {seconds:7.2f} s  {max(memory for _, memory, _ in results):7.0f} MB")


if __name__ == "__main__":
    main()
