"""Several processes train as one process with the sum of their batches; each has all weights, or a share."""

from __future__ import annotations

import math
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptcli.training.checkpoints import RunDirectory
from gptcli.training.corpus import TRAIN, Corpus
from tests.cli.conftest import Cli
from tests.runtime.test_tensor_parallel import torchrun, torchrun_command
from tests.tiny import TEXT, make_model
from tests.training.kills import logged

OPTIONS = ("--block-size", "16", "--learning-rate", "0.01", "--threads", "1", "--eval-share", "0.1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (file := tmp_path / "data.txt").write_text(TEXT)
    return file


def losses(out: Path, event: str = "step", field: str = "loss") -> dict[float, float]:
    return dict(zip(logged(out, event, "step"), logged(out, event, field), strict=True))


@pytest.mark.parametrize("fsdp", [(), ("--fsdp", "--micro-batch", "1", "--save-memory", "--sample", "In a")])
def test_two_processes_have_the_losses_of_one_with_twice_the_batch(
    cli: Cli, data: Path, tmp_path: Path, fsdp: tuple[str, ...]
) -> None:
    model = make_model(tmp_path / "model")
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["train", str(data), "-m", str(model), "--full", *OPTIONS]
    assert cli(*arguments, "-o", one, "-b", "4", "-q").code == 0
    done = torchrun(2, "gptcli", *arguments, "-o", two, "-b", "2", *fsdp)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two}\n".encode()
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    held_out = [losses(out, "held-out", "held_out_loss") for out in (two, one)]
    assert held_out[0] == pytest.approx(held_out[1], abs=1e-4)
    ours, theirs = (load_file(out / "model.safetensors") for out in (two, one))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-3 for name in ours)


def test_processes_that_share_weights_and_are_killed_go_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--fsdp", "--lora", "2", "--lora-dropout", "0.3", "--save-every", "2", *OPTIONS)
    arguments = ("gptcli", "train", str(data), "-m", str(model), "-b", "2", *options)
    assert torchrun(2, *arguments, "-o", whole).returncode == 0
    running = subprocess.Popen(torchrun_command(2, *arguments, "-o", parts), start_new_session=True)
    directory = RunDirectory(parts)
    while not (steps := directory.steps()):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)  # torchrun passes it to the processes
    running.wait()
    steps = directory.steps()
    sequences = len(Corpus(directory.data, TRAIN))
    assert steps[-1] < 3 * math.ceil(sequences / 4), "it was not stopped"
    shares = [
        load_file(directory.checkpoints / f"step-{steps[-1]:08}" / f"weights-{rank}.safetensors") for rank in (0, 1)
    ]
    assert all(shares[0][name].shape[0] == shares[1][name].shape[0] for name in shares[0])
    assert torchrun(2, *arguments, "-o", parts, "--resume").returncode == 0
    ours, theirs = (load_file(out / "adapter_model.safetensors") for out in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(parts) == losses(whole)


def test_weights_are_shared_among_several_processes_only(cli: Cli, data: Path, tmp_path: Path) -> None:
    done = cli("train", data, "-o", tmp_path / "out", "--fsdp")
    assert done.code == 2
    assert "torchrun" in done.err
