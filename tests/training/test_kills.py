from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptcli.training.checkpoints import RunDirectory
from gptcli.training.parallel.data_parallel import Processes
from tests.training.kills import kill


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    report = kill(3, random.Random(3), tmp_path)
    assert report.kills == 3
    assert report.completed > 0


def save(directory: RunDirectory, step: int) -> None:
    directory.save(step, {"weights.safetensors": {"a": torch.ones(2)}}, {"step": step}, Processes(None))


@pytest.mark.parametrize("act", [lambda directory: save(directory, 4), RunDirectory.finish], ids=["save", "finish"])
def test_a_run_that_is_killed_as_it_removes_checkpoints_leaves_none_in_part(
    act: Callable[[RunDirectory], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    for step in (2, 3):
        save(directory, step)
    remove = shutil.rmtree

    def killed(path: Path, *, ignore_errors: bool) -> None:
        if files := sorted(path.rglob("*.json")):
            files[0].unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        act(directory)
    assert all(directory.load(step)[1] == {"step": step} for step in directory.steps())
    monkeypatch.undo()
    save(directory, 6)
    assert directory.steps()[-1] == 6 and not list(directory.checkpoints.glob("*.part"))
