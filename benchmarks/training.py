"""Steps a second and peak memory of `gptcli train` beside transformers' Trainer, on the same data, on a CPU in fp32.

    python benchmarks/training.py                 # GPT-2 with all of its 124 million weights
    python benchmarks/training.py --of lora       # an adapter of the default model; --of full trains all of it

Each side runs in processes of its own, in turns. The figures are those of the median step after the first few, of time,
and of time of the cores, which other processes change less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_WARM = 2  # steps that are not counted
_RANK, _BLOCK = 16, 128
_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
_OFF = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


class Clock:
    """Seconds, and seconds of the cores, of steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def begin(self) -> None:
        """Before a step."""
        self._began = time.monotonic(), time.process_time()

    def end(self) -> None:
        """After it."""
        self.steps.append((time.monotonic() - self._began[0], time.process_time() - self._began[1]))


def ours(work: Path, of: str, steps: int, batch: int) -> Clock:
    """Times each step of gptcli."""
    from gptcli.cli.app import run
    from gptcli.training.loop import Training

    clock, advance = Clock(), Training._advance

    def timed(training: Training) -> Any:
        clock.begin()
        step = advance(training)
        clock.end()
        return step

    Training._advance = timed  # type: ignore[assignment,method-assign]  # to time each step: training has no hook around it

    out = work / f"out-{os.getpid()}"
    options = ["--max-steps", str(steps), "-b", str(batch), "--block-size", str(_BLOCK), "--eval-share", "0", "-q"]
    options += ["--lora", str(_RANK)] if of == "lora" else ["--full"]
    code = run(["train", str(work / "data.txt"), "-m", str(work / "model"), "-o", str(out), *options])
    assert code == 0
    return clock


def theirs(work: Path, of: str, steps: int, batch: int) -> Clock:
    """Times each step of the Trainer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    ids = AutoTokenizer.from_pretrained(work / "model")((work / "data.txt").read_text())["input_ids"]
    blocks = [torch.tensor(ids[start : start + _BLOCK]) for start in range(0, len(ids) - _BLOCK + 1, _BLOCK)]
    model: Any = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    if of == "lora":
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
    clock = Clock()

    class Timed(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            clock.begin()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            clock.end()

    arguments = TrainingArguments(
        str(work / "theirs"), per_device_train_batch_size=batch, max_steps=steps, logging_strategy="no",
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    Trainer(model, arguments, train_dataset=rows, callbacks=[Timed()]).train()
    return clock


def prepare(work: Path, of: str) -> None:
    """Writes a text, and the model that is trained on it, with dense weights that both sides open."""
    from gptcli.checkpoint.folder import ModelFolder
    from gptcli.export.dense_folder import write_dense
    from gptcli.models.catalog import DEFAULT_MODEL
    from gptcli.models.locate import locate
    from gptcli.training.new_model import train_tokenizer, write_new_model

    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    text = "".join(page.read_text() for page in pages)
    (work / "data.txt").write_text(text)
    (work / "model").mkdir()
    if of != "gpt2":
        write_dense(ModelFolder.open(locate(DEFAULT_MODEL)), work / "model", lambda name: None)
        return
    train_tokenizer([text], 8192, work / "model")
    write_new_model(_GPT2 | _OFF, 0, work / "model", 0)


def main() -> None:
    """Prints a line for each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", choices=("gpt2", "lora", "full"), default="gpt2")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        clock = (ours if given.side == "ours" else theirs)(given.work, given.of, given.steps, given.batch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"steps": clock.steps[_WARM:], "peak_mb": peak}))
        return
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), given.of)
        # As gptcli sets it: by default threads starve each other where another process keeps a core busy.
        environment = os.environ | {"GOMP_SPINCOUNT": "1000"}
        medians: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        peaks: dict[str, float] = {}
        for _ in range(given.turns):
            for side, found in medians.items():
                command = [sys.executable, __file__, "--side", side, "--work", directory, "--of", given.of]
                command += ["--steps", str(given.steps), "--batch", str(given.batch)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                figures = json.loads(done.stdout.splitlines()[-1])
                wall, cores = (statistics.median(each) for each in zip(*figures["steps"], strict=True))
                found.append((wall, cores))
                peaks[side] = max(peaks.get(side, 0), figures["peak_mb"])
        for side, found in medians.items():
            wall, cores = (min(each) for each in zip(*found, strict=True))
            print(f"{side}: {1 / wall:.2f} steps/s, {cores:.2f} s of the cores a step, peak {peaks[side]:.0f} MB")


if __name__ == "__main__":
    main()
