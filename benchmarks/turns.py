"""Two engines that take turns, each in its own process: what scripts that compare gptcli with another engine share.

This module measures, prints and runs gptcli; the script runs the other engine. The script starts itself as a worker,
perhaps with an interpreter that has neither gptcli nor torch, so both are imported only where they are needed.
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
# Endless greedy tokens after a prompt: the first costs the prefill, each further one a step.
Generate = Callable[[list[int]], Iterator[int]]


def arguments(pairs: Iterable[str], repeats: int) -> argparse.ArgumentParser:
    """The options that these scripts share. --worker is for their own use."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512])
    parser.add_argument("--only", nargs="+", choices=pairs, default=list(pairs))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


class Worker:
    """The running script as a second process, which measures one engine on request."""

    def __init__(self, settings: dict[str, Any], python: str = sys.executable) -> None:
        command = [python, sys.argv[0], "--worker", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        self._answer()  # once it has loaded
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def rate(self, phase: str) -> float:
        """Tokens per second of a phase: "decode", or "prefill 512" for a prompt of 512 tokens."""
        return float(self._ask(phase))

    def greedy(self, prompt: list[int]) -> list[int]:
        """The DECODE_TOKENS greedy tokens after the prompt."""
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
    """Runs as a worker: answers each line on stdin."""
    print("ready", flush=True)
    for line in sys.stdin:
        kind, _, rest = line.strip().partition(" ")
        if kind == "greedy":
            print(json.dumps(list(islice(generate(json.loads(rest)), DECODE_TOKENS))), flush=True)
        else:
            print(measure(generate, kind, int(rest or 8)), flush=True)


def measure(generate: Generate, kind: str, prompt: int) -> float:
    """Tokens per second."""
    tokens = generate([1 + position % 1000 for position in range(prompt)])
    started = time.perf_counter()
    next(tokens)
    count = prompt
    if kind == "decode":
        started = time.perf_counter()
        count = sum(1 for _ in islice(tokens, DECODE_TOKENS))
    return count / (time.perf_counter() - started)


def ours(settings: dict[str, Any]) -> Generate:
    """Generates with gptcli: settings["model"], loaded with the keyword arguments in settings["asked"]."""
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
    """The names of the phases to measure."""
    return ["decode", *(f"prefill {prompt}" for prompt in prompts)]


def print_head(other: str, prompts: list[int]) -> None:
    """Prints the head of a Markdown table with a row per pair."""
    names = phases(prompts)
    print("| weights | " + " | ".join(f"{name}: ours | {other} | ratio" for name in names) + " |")
    print("|---" * (1 + 3 * len(names)) + "|", flush=True)


def print_row(title: str, first: Worker, second: Worker, prompts: list[int], repeats: int) -> None:
    """Measures in turns. Prints medians, and the median of the pairs' ratios with its quartiles."""
    cells = [title]
    for phase in phases(prompts):
        rates = [(first.rate(phase), second.rate(phase)) for _ in range(repeats + 1)][1:]  # the first warms up
        mine, other = zip(*rates, strict=True)
        low, middle, high = statistics.quantiles((a / b for a, b in rates), n=4, method="inclusive")
        cells += [f"{statistics.median(mine):.0f}", f"{statistics.median(other):.0f}"]
        cells += [f"{middle:.2f} ({low:.2f}-{high:.2f})"]
    print("| " + " | ".join(cells) + " |", flush=True)


def dense_weights(folder: ModelFolder) -> dict[str, Tensor]:
    """A model's weights by name. Packed ones become fp32."""
    import torch

    from gptcli.checkpoint.weights.tensor_source import TensorSource
    from gptcli.quant.packed import PackedWeight

    with TensorSource(folder) as source:
        values = {name: source.weight(name) for name in folder.weights}
    return {
        name: value.dequantize(torch.float32) if isinstance(value, PackedWeight) else value
        for name, value in values.items()
    }


def dense_config(folder: ModelFolder) -> dict[str, Any]:
    """The model's config.json without quantization, for dense weights."""
    return {name: value for name, value in folder.config.items() if not name.startswith("quantization")}


def write_dense(folder: ModelFolder, weights: dict[str, Tensor], dtype: str, directory: Path) -> None:
    """Writes a checkpoint of the weights in fp32, bf16 or fp16, with the folder's tokenizer."""
    import torch
    from safetensors.torch import save_file

    to = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    directory.mkdir()
    dense = {name: value.to(to) for name, value in weights.items()}
    save_file(dense, directory / "model.safetensors", metadata={"format": "pt"})  # transformers insists on it
    (directory / "config.json").write_text(json.dumps(dense_config(folder)))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((folder.path / file).read_bytes())
