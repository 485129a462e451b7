"""Steps a second and peak memory of `gptcli train` beside transformers' Trainer, on the same data: two cores, fp32.

    python benchmarks/training.py                 # GPT-2's shape, every weight
    python benchmarks/training.py --layers 6 --width 256 --steps 40

Each side runs in processes of its own, in turns. The figure is the median step after the first five.
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

_WARM = 5  # steps that are not counted


def ours(work: Path, steps: int, batch: int) -> list[float]:
    """The seconds of each step of gptcli."""
    from gptcli.cli.app import run

    out = work / f"out-{os.getpid()}"
    options = ["--max-steps", str(steps), "-b", str(batch), "--eval-share", "0", "-q", "--save-minutes", "1000"]
    code = run(["train", str(work / "data.txt"), "-m", str(work / "model"), "--full", "-o", str(out), *options])
    assert code == 0
    events = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [event["seconds"] for event in events if event["event"] == "step"]


def theirs(work: Path, steps: int, batch: int) -> list[float]:
    """The seconds of each step of the Trainer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    ids = AutoTokenizer.from_pretrained(work / "model")((work / "data.txt").read_text())["input_ids"]
    blocks = [torch.tensor(ids[start : start + 128]) for start in range(0, len(ids) - 127, 128)]
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            seconds.append(time.monotonic() - self.began)

    arguments = TrainingArguments(
        str(work / "theirs"),
        per_device_train_batch_size=batch,
        max_steps=steps,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return seconds


def prepare(work: Path, layers: int, width: int, vocabulary: int) -> None:
    """Writes a text, and a model of GPT-2's shape for it."""
    from gptcli.training.new_model import train_tokenizer, write_new_model

    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    text = "".join(page.read_text() for page in pages)
    (work / "data.txt").write_text(text)
    (work / "model").mkdir()
    size = train_tokenizer([text], vocabulary, work / "model")
    shape = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 1024}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    write_new_model({"model_type": "gpt2", "vocab_size": size, **shape, **off}, 0, work / "model", 0)


def main() -> None:
    """Prints a line for each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        seconds = (ours if given.side == "ours" else theirs)(given.work, given.steps, given.batch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds[_WARM:], "peak_mb": peak}))
        return
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), given.layers, given.width, given.vocabulary)
        # As gptcli sets it: by default threads starve each other where another process keeps a core busy.
        environment = os.environ | {"GOMP_SPINCOUNT": "1000"}
        medians: dict[str, list[float]] = {"ours": [], "theirs": []}
        peaks: dict[str, float] = {}
        for _ in range(given.turns):
            for side, found in medians.items():
                command = [sys.executable, __file__, "--side", side, "--work", directory]
                command += ["--steps", str(given.steps), "--batch", str(given.batch)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                figures = json.loads(done.stdout.splitlines()[-1])
                found.append(statistics.median(figures["seconds"]))
                peaks[side] = max(peaks.get(side, 0), figures["peak_mb"])
        for side, found in medians.items():
            best = min(found)
            print(f"{side}: {1 / best:.2f} steps/s ({best * 1000:.0f} ms), peak {peaks[side]:.0f} MB")


if __name__ == "__main__":
    main()
