"""Two processes train as one does with batches of twice the size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.runtime.test_tensor_parallel import torchrun
from tests.tiny import TEXT, make_model

OPTIONS = ("--full", "--block-size", "16", "--learning-rate", "0.01", "--threads", "1", "--eval-share", "0.1")


def losses(out: Path) -> list[tuple[int, float]]:
    events = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [(event["step"], event["loss"]) for event in events if event["event"] == "step"]


def test_two_processes_have_the_losses_of_one_with_twice_the_batch(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (data := tmp_path / "data.txt").write_text(TEXT)
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["train", str(data), "-m", str(model), *OPTIONS]
    assert cli(*arguments, "-o", one, "-b", "4", "-q").code == 0
    done = torchrun(2, "gptcli", *arguments, "-o", two, "-b", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two}\n".encode()
    ours, theirs = losses(two), losses(one)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-4)
