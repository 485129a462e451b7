"""Kills training runs with SIGKILL, over and over, and checks that they end as if nothing had happened.

`python -m tests.training.kills 200` trains tiny models: an adapter, all weights, or a new model. Each process is killed
at a random moment or within a random write, and the next one resumes. After each kill, every checkpoint must open. When
a run ends, its weights and losses must equal those of a run that was never killed, bit for bit. Exits with 1 at the
first difference.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptcli.cli.commands.train
import gptcli.training.run  # noqa: F401
from gptcli.cli.app import run
from gptcli.training import checkpoints
from gptcli.training.checkpoints import RunDirectory
from tests.kills import Loss, die, main, was_killed
from tests.tiny import TEXT, make_model

_LAST_WRITE = 24
_OPTIONS = ("--block-size", "16", "--learning-rate", "0.01", "--save-every", "2", "--threads", "1", "-q")
_NEW = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


@dataclass
class Report:
    """The results. torn: kills that left unfinished files; checkpoints: checkpoints opened after kills."""

    kills: int = 0
    torn: int = 0
    checkpoints: int = 0
    completed: int = 0

    @property
    def summary(self) -> str:
        """See `tests.kills.Report`."""
        return (
            f"{self.torn} leaving something unfinished: {self.checkpoints} checkpoints opened, "
            f"{self.completed} runs ended bit for bit as if never killed"
        )


def die_in_write(number: int, share: float) -> None:
    """Kills this process in its number-th write or flush of a file, after a share of the file's bytes."""
    left = [number]

    def dying(write: Any) -> Any:
        def then(data: Any, path: Path, *rest: Any) -> None:
            write(data, path, *rest)
            left[0] -= 1
            if left[0] == 0:
                os.truncate(path, int(os.path.getsize(path) * share))
                die()

        return then

    checkpoints.save_file = dying(checkpoints.save_file)
    write_text = Path.write_text
    Path.write_text = lambda self, text, **how: dying(lambda t, p: write_text(p, t, **how))(text, self)  # type: ignore
    flush = checkpoints._flush

    def dying_flush(path: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            die()
        flush(path)

    checkpoints._flush = dying_flush


def train(arguments: Sequence[str], dice: random.Random | None, latest_s: float = 0.0) -> bool:
    """Trains in a fork of this process. Returns whether it was killed, which needs dice.

    latest_s: the longest time from its start until it is killed.
    """
    in_write = dice is not None and dice.random() < 0.5
    number, share, moment = (
        (dice.randint(1, _LAST_WRITE), dice.random(), dice.uniform(0, latest_s)) if dice else (0, 0.0, 0.0)
    )

    def work() -> int:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        if in_write:
            die_in_write(number, share)
        return run(arguments)

    return was_killed(work, None if dice is None or in_write else moment)


def made(out: Path) -> tuple[dict[str, bytes], list[float]]:
    """The files that a run made, and the losses of its steps."""
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".safetensors", ".json")}
    return files, logged(out)


def logged(out: Path, event: str = "step", field: str = "loss") -> list[float]:
    """What a run logged of each event of a kind, in order."""
    events = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [each[field] for each in events if each["event"] == event]


def check_checkpoints(out: Path) -> int:
    """Opens every checkpoint. Returns how many there are."""
    directory = RunDirectory(out)
    for step in (steps := directory.steps()):
        try:
            read, state = directory.load(step)
            found = state["step"], len(read("weights.safetensors")), len(read("optimizer.safetensors"))
        except Exception as error:
            raise Loss(f"the checkpoint of step {step} does not open: {error}") from None
        if found[0] != step or not found[1]:
            raise Loss(f"the checkpoint of step {step} holds another: {found}")
    return len(steps)


def kill(kills: int, dice: random.Random, directory: Path) -> Report:
    """Kills this many processes. Raises Loss."""
    report = Report()
    model = make_model(directory / "tiny")
    (data := directory / "data.txt").write_text(TEXT * 3)
    (config := directory / "config.json").write_text(json.dumps(_NEW))
    ways = {
        "adapter": ("-m", str(model), "--lora", "2", "--lora-dropout", "0.3"),
        "full": ("-m", str(model), "--full"),
        "new": ("--new", str(config), "--vocab-size", "280"),
    }
    wanted, seconds = dict[str, Any](), dict[str, float]()
    for name, way in ways.items():
        begun = time.monotonic()
        train(["train", str(data), *way, "-o", str(directory / name), *_OPTIONS], None)
        wanted[name], seconds[name] = made(directory / name), time.monotonic() - begun
    out = directory / "out"
    while report.kills < kills:
        name = dice.choice(list(ways))
        arguments = ["train", str(data), *ways[name], "-o", str(out), "--resume", *_OPTIONS]
        while report.kills < kills and train(arguments, dice, seconds[name]):
            report.kills += 1
            report.torn += any(path.name.endswith(".part") for path in out.rglob("*"))
            report.checkpoints += check_checkpoints(out)
        train(arguments, None)
        if made(out) != wanted[name]:
            raise Loss(f"a run with {ways[name]} ended in other weights, files or losses")
        report.completed += 1
        shutil.rmtree(out)
    return report


if __name__ == "__main__":
    sys.exit(main(__doc__, 200, kill))
