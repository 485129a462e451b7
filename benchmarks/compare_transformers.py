"""Speed beside transformers' `generate`: the same fp32 weights in one process, alternating. Prints medians.

python benchmarks/compare_transformers.py [--model NAME] [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as gptcli sets it, but before torch is imported here

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import gptcli
from gptcli.checkpoint.recipes import sources
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.quant.packed import PackedWeight

PROMPT_TOKENS, DECODE_TOKENS = 512, 64


def as_transformers(lm: gptcli.LanguageModel) -> Any:
    """The same weights in transformers, dense in fp32."""
    dense = {}
    with TensorSource(lm.folder) as source:
        for recipe in lm.folder.architecture.parameters.values():
            for name in sources(recipe):
                weight = source.weight(name)
                dense[name] = weight.dequantize(torch.float32) if isinstance(weight, PackedWeight) else weight.float()
    with tempfile.TemporaryDirectory() as directory:
        save_file(dense, Path(directory) / "model.safetensors", metadata={"format": "pt"})
        fields = {name: value for name, value in lm.folder.config.items() if name != "quantization"}
        LlamaConfig(**fields).save_pretrained(directory)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()

    ours = gptcli.load(options.model, device="cpu", dtype="fp32", quantize="none", threads=options.threads)
    reference = as_transformers(ours)
    words = ours.tokenizer.encode("In a small town there lived a clockmaker who had many clocks. " * 60)
    prompt, short = words[:PROMPT_TOKENS], words[:4]

    def our_generate(ids: list[int], tokens: int) -> None:
        list(ours.generate(ids, max_tokens=tokens, temperature=0.0, ignore_eos=True))

    def reference_generate(ids: list[int], tokens: int) -> None:
        with torch.inference_mode():
            reference.generate(
                torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            )

    engines = {"gptcli": our_generate, "transformers": reference_generate}
    decode: dict[str, list[float]] = {name: [] for name in engines}
    prefill: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(options.repeats + 1):
        for name, generate in engines.items():
            first = seconds(partial(generate, short, 1))
            whole = seconds(partial(generate, short, DECODE_TOKENS + 1))
            long = seconds(partial(generate, prompt, 1))
            if repeat:  # the first round warms up
                decode[name].append(DECODE_TOKENS / (whole - first))
                prefill[name].append(PROMPT_TOKENS / long)

    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.repeats} repeats, median (min-max)\n"
    )
    print(f"| engine | decode {DECODE_TOKENS}, tok/s | prefill {PROMPT_TOKENS}, tok/s |\n|---|---|---|")
    for name in engines:
        cells = [
            f"{statistics.median(figures[name]):.1f} ({min(figures[name]):.1f}-{max(figures[name]):.1f})"
            for figures in (decode, prefill)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    for what, figures in (("decode", decode), ("prefill", prefill)):
        pairs = [a / b for a, b in zip(figures["gptcli"], figures["transformers"], strict=True)]
        print(f"\n{what}: {statistics.median(pairs):.2f}x of transformers, pair by pair")


if __name__ == "__main__":
    main()
