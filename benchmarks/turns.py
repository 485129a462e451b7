"""Two engines taking turns, each a process of its own, for the scripts that put gptcli beside another engine.

Knows gptcli and how to measure and to print; the other engine is its script's. Such a script starts itself as a worker,
perhaps with an interpreter that has neither gptcli nor torch: both are imported only where they are needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.checkpoint.folder import ModelFolder

DECODE_TOKENS = 64
# Greedy tokens after a prompt, without end; the first one is the prompt's prefill, each further one a step.
Generate = Callable[[list[int]], Iterator[int]]


def arguments(pairs: Iterable[str], repeats: int) -> argparse.ArgumentParser:
    """What such scripts have in common on their command lines; --worker is for themselves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512])
    parser.add_argument("--only", nargs="+", choices=pairs, default=list(pairs))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


class Worker:
    """The running script as a process that measures an engine when it is told to."""

    def __init__(self, settings: dict[str, Any], python: str = sys.executable) -> None:
        command = [python, sys.argv[0], "--worker", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        self._answer()  # it has loaded
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def rate(self, phase: str) -> float:
        """Tokens a second, in "decode" or in a prefill of so many tokens, "prefill 512"."""
        return float(self._ask(phase))

    def greedy(self, prompt: list[int]) -> list[int]:
        """DECODE_TOKENS tokens after the prompt."""
        return list(json.loads(self._ask(f"greedy {json.dumps(prompt)}")))

    def _ask(self, what: str) -> str:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit("a worker has died")
        return line


def work(generate: Generate) -> None:
    """Is a worker: answers each line on stdin."""
    print("ready", flush=True)
    for line in sys.stdin:
        kind, _, rest = line.strip().partition(" ")
        if kind == "greedy":
            print(json.dumps(list(islice(generate(json.loads(rest)), DECODE_TOKENS))), flush=True)
        else:
            print(measure(generate, kind, int(rest or 8)), flush=True)


def measure(generate: Generate, kind: str, prompt: int) -> float:
    """Tokens a second."""
    tokens = generate([1 + place % 1000 for place in range(prompt)])
    started = time.perf_counter()
    next(tokens)
    count = prompt
    if kind == "decode":
        started = time.perf_counter()
        count = sum(1 for _ in islice(tokens, DECODE_TOKENS))
    return count / (time.perf_counter() - started)


def ours(settings: dict[str, Any]) -> Generate:
    """Of gptcli, settings["model"] with what settings["asked"] asks for."""
    import gptcli

    lm = gptcli.load(Path(settings["model"]), device="cpu", **settings["asked"])
    cache = lm.engine.new_cache()

    def generate(prompt: list[int]) -> Iterator[int]:
        cache.truncate(0)
        logits = lm.engine.prefill(prompt, cache)
        assert logits is not None
        while True:
            token = int(logits.argmax())
            yield token
            logits = lm.engine.decode(token, cache)

    return generate


def phases(prompts: list[int]) -> list[str]:
    """Names of what is measured."""
    return ["decode", *(f"prefill {prompt}" for prompt in prompts)]


def print_head(other: str, prompts: list[int]) -> None:
    """The head of a Markdown table that has a row for each pair."""
    names = phases(prompts)
    print("| weights | " + " | ".join(f"{name}: ours | {other} | ratio" for name in names) + " |")
    print("|---" * (1 + 3 * len(names)) + "|", flush=True)


def print_row(title: str, first: Worker, second: Worker, prompts: list[int], repeats: int) -> None:
    """Measures in turns; medians, the median of the pairs' ratios and its quartiles."""
    cells = [title]
    for phase in phases(prompts):
        rates = [(first.rate(phase), second.rate(phase)) for _ in range(repeats + 1)][1:]  # the first warms up
        mine, other = zip(*rates, strict=True)
        low, middle, high = statistics.quantiles((a / b for a, b in rates), n=4, method="inclusive")
        cells += [f"{statistics.median(mine):.0f}", f"{statistics.median(other):.0f}"]
        cells += [f"{middle:.2f} ({low:.2f}-{high:.2f})"]
    print("| " + " | ".join(cells) + " |", flush=True)


def dense_weights(folder: ModelFolder) -> dict[str, Tensor]:
    """A model's weights by name, packed ones as fp32."""
    import torch

    from gptcli.checkpoint.tensor_source import TensorSource
    from gptcli.quant.packed import PackedWeight

    with TensorSource(folder) as source:
        values = {name: source.weight(name) for name in folder.weights}
    return {
        name: value.dequantize(torch.float32) if isinstance(value, PackedWeight) else value
        for name, value in values.items()
    }


def dense_config(folder: ModelFolder) -> dict[str, Any]:
    """Its config.json for such weights."""
    return {name: value for name, value in folder.config.items() if not name.startswith("quantization")}


def write_dense(folder: ModelFolder, weights: dict[str, Tensor], dtype: str, directory: Path) -> None:
    """Makes the directory a checkpoint of the weights in fp32, bf16 or fp16, with the folder's tokenizer."""
    import torch
    from safetensors.torch import save_file

    to = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    directory.mkdir()
    dense = {name: value.to(to) for name, value in weights.items()}
    save_file(dense, directory / "model.safetensors", metadata={"format": "pt"})  # which transformers insists on
    (directory / "config.json").write_text(json.dumps(dense_config(folder)))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((folder.path / file).read_bytes())
