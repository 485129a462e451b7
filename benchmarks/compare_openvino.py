"""Speed beside OpenVINO GenAI: the default model's weights, each engine a process, the two in turns.

OpenVINO needs its own virtual environment, whose interpreter also makes its models. torch's CPU build is enough there.
A torchvision of another build breaks optimum, and nothing here needs one:

python -m venv ov && ov/bin/pip install openvino-genai optimum-intel nncf && ov/bin/pip uninstall -y torchvision
python benchmarks/compare_openvino.py --python ov/bin/python [--repeats 15] [--threads 2] [--prompts 512 4096]
    [--only fp32 int8 ...]

Both engines take ids and give the greedy token of the last position, without tokenizing. OpenVINO uses its
continuous-batching pipeline, the fastest here, which computes the logits of the last position only; its prefix cache is
off. It gets a latency hint and the arithmetic that the row names: by default it takes bf16 on CPUs that have it,
whatever the weights are in. A pair takes turns within a repeat. Prints medians, the median of the pairs' ratios with
its quartiles, then how many greedy tokens after a few words are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from turns import (
    DECODE_TOKENS,
    Generate,
    Worker,
    arguments,
    dense_weights,
    ours,
    print_head,
    print_row,
    work,
    write_dense,
)

PROMPT = "In a small town there lived a clockmaker"
LONGEST = 8192
# Ours: --quantize and the weights it starts from. OpenVINO's: how weights are stored, and its arithmetic.
PAIRS = {
    "fp32": ("auto", "fp32", "fp32", "f32"),
    "bf16": ("auto", "bf16", "fp16", "bf16"),
    "int8": ("int8", "bf16", "int8", "bf16"),
    "int8 beside fp32 arithmetic": ("int8", "bf16", "int8", "f32"),
    "int4": ("int4", "bf16", "int4", "bf16"),
    "int4 beside fp32 arithmetic": ("int4", "bf16", "int4", "f32"),
}
# optimum's defaults: int8 per channel, and the head in int8 for int4 too. Its default groups of 128 do not divide this
# model's rows.
EXPORTS = {
    "fp32": ["--weight-format", "fp32"],
    "fp16": ["--weight-format", "fp16"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"],
}
REQUIRED = ("openvino_genai", "optimum.intel", "nncf")


def main() -> None:
    """Prints a Markdown table, or runs one engine with --worker."""
    parser = arguments(PAIRS, repeats=15)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has OpenVINO")
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        work(ours(settings) if settings["engine"] == "gptcli" else openvino(settings))
        return
    print(versions(options.python), end="\n\n")
    with tempfile.TemporaryDirectory() as directory:
        compare(options, make_models(options, Path(directory)))


def compare(options: argparse.Namespace, models: dict[str, Path]) -> None:
    """Runs one pair after another and prints a row for each."""
    from tokenizers import Tokenizer

    prompt = Tokenizer.from_file(str(models["ours fp32"] / "tokenizer.json")).encode(PROMPT).ids
    print_head("OpenVINO", options.prompts)
    agreement = []
    for pair in options.only:
        quantize, source, stored, arithmetic = PAIRS[pair]
        asked = {"quantize": quantize, "threads": options.threads}
        mine = {"engine": "gptcli", "model": str(models[f"ours {source}"]), "asked": asked}
        theirs = {
            "engine": "OpenVINO",
            "model": str(models[stored]),
            "threads": options.threads,
            "arithmetic": arithmetic,
        }
        with Worker(mine) as first, Worker(theirs, options.python) as second:
            print_row(f"{pair} / {stored}, {arithmetic}", first, second, options.prompts, options.repeats)
            same = [a == b for a, b in zip(first.greedy(prompt), second.greedy(prompt), strict=True)]
        agreement.append(f"{pair}: {[*same, False].index(False)} of {DECODE_TOKENS}")
    print("\nThe same greedy tokens from the first on: " + ", ".join(agreement))


def openvino(settings: dict[str, Any]) -> Generate:
    """Generates with OpenVINO GenAI."""
    import numpy as np
    import openvino_genai
    from openvino import Tensor

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # the same prompt is measured again
    scheduler.max_num_batched_tokens = LONGEST  # a whole prompt at once
    scheduler.cache_size = 1  # GB
    properties = {
        "INFERENCE_NUM_THREADS": settings["threads"],
        "INFERENCE_PRECISION_HINT": settings["arithmetic"],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if settings["arithmetic"] == "f32":
        properties["KV_CACHE_PRECISION"] = "f32"  # as ours; 16 bits by default
    pipeline = openvino_genai.ContinuousBatchingPipeline(settings["model"], scheduler, "CPU", properties)
    endless = openvino_genai.GenerationConfig(max_new_tokens=LONGEST, ignore_eos=True, do_sample=False)

    def generate(prompt: list[int]) -> Iterator[int]:
        request = pipeline.add_request(0, Tensor(np.array([prompt], np.int64)), endless)
        try:
            while True:
                pipeline.step()
                (output,) = request.read().values()
                yield output.generated_ids[0]
        finally:
            request.cancel()
            pipeline.step()  # frees the request

    return generate


def make_models(options: argparse.Namespace, directory: Path) -> dict[str, Path]:
    """Writes the same weights for both: ours in fp32 and bf16, and from fp32 what OpenVINO stores for the pairs."""
    from gptcli.checkpoint.folder import ModelFolder
    from gptcli.models.catalog import DEFAULT_MODEL
    from gptcli.models.locate import locate

    folder = ModelFolder.open(locate(DEFAULT_MODEL))
    weights = dense_weights(folder)
    models = {}
    for dtype in ("fp32", "bf16"):
        models[f"ours {dtype}"] = directory / f"ours-{dtype}"
        write_dense(folder, weights, dtype, models[f"ours {dtype}"])
    for stored in {PAIRS[pair][2] for pair in options.only}:
        models[stored] = directory / stored
        export = [options.python, "-m", "optimum.commands.optimum_cli", "export", "openvino", *EXPORTS[stored]]
        about = ["--task", "text-generation-with-past", "--library", "transformers"]
        command = [*export, *about, "--model", str(models["ours fp32"]), str(models[stored])]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        made = subprocess.run(command, cwd=directory, env=offline, capture_output=True, text=True)
        if made.returncode:
            raise SystemExit(f"{made.stderr}optimum could not make OpenVINO's {stored} model")
    return models


def versions(python: str) -> str:
    """The versions of OpenVINO that an interpreter has. Ends the script where it has none."""
    program = f"import {', '.join(REQUIRED)}; print(openvino_genai.__version__, nncf.__version__)"
    try:
        asked = subprocess.run([python, "-c", program], capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"{python} cannot be run: {error.strerror}") from None
    if asked.returncode:
        why = asked.stderr.strip().splitlines()[-1]
        raise SystemExit(
            f"{python} cannot import {', '.join(REQUIRED)} ({why}); name an interpreter that can with --python,"
            " made as the beginning of this script says"
        )
    genai, nncf = asked.stdout.split()[-2:]
    return f"OpenVINO GenAI {genai}, nncf {nncf}"


if __name__ == "__main__":
    main()
