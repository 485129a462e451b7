"""Calls to CUDA are made with arguments that the installed torch accepts, and in the right order."""

from __future__ import annotations

from unittest.mock import MagicMock, create_autospec

import pytest
import torch

from gptcli.cuda.graph import cuda_graph
from gptcli.cuda.static_step import Outputs

OUTPUTS = torch.zeros(1, 4), torch.tensor(True)
DEVICE = torch.device("cuda:0")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that torch got, recorded by stand-ins with torch's own signatures."""
    said: list[str] = []

    def context(name: str) -> MagicMock:
        manager = MagicMock()
        manager.__enter__.side_effect = lambda: said.append(f"begin {name}")
        manager.__exit__.side_effect = lambda *_: said.append(f"end {name}")  # returns None, so exceptions propagate
        return manager

    def stream(name: str) -> MagicMock:
        made = MagicMock(spec=["wait_stream"])
        made.wait_stream.side_effect = lambda other: said.append(f"{name} waits")
        return made

    graph = create_autospec(torch.cuda.CUDAGraph, instance=True)
    graph.replay.side_effect = lambda: said.append("replay")
    side, current = stream("side"), stream("current")
    for name, answer in {
        "Stream": side,
        "current_stream": current,
        "stream": context("side"),
        "CUDAGraph": graph,
        "graph": context("recording"),
    }.items():
        stand_in = create_autospec(getattr(torch.cuda, name))
        stand_in.side_effect = None
        stand_in.return_value = answer
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return said


def test_a_step_runs_once_and_is_then_recorded_on_its_own_stream(said: list[str]) -> None:
    def run() -> Outputs:
        said.append("run")
        return OUTPUTS

    replay = cuda_graph(run, DEVICE)
    recorded = [
        "side waits", "begin side", "run", "begin recording", "run", "end recording", "end side", "current waits",
    ]  # fmt: skip
    assert said == recorded
    assert replay() is OUTPUTS and replay() is OUTPUTS
    assert said == [*recorded, "replay", "replay"]
    side = torch.cuda.Stream.return_value  # type: ignore[attr-defined]
    torch.cuda.Stream.assert_called_once_with(DEVICE)  # type: ignore[attr-defined]
    torch.cuda.stream.assert_called_once_with(side)  # type: ignore[attr-defined]
    [recording] = torch.cuda.graph.call_args_list  # type: ignore[attr-defined]
    assert recording.args == (torch.cuda.CUDAGraph.return_value,)  # type: ignore[attr-defined]
    assert recording.kwargs == {"stream": side, "capture_error_mode": "thread_local"}


def test_the_stream_is_left_if_a_recording_fails(said: list[str]) -> None:
    runs: list[None] = []

    def run() -> Outputs:
        runs.append(None)
        if len(runs) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return OUTPUTS

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph(run, DEVICE)
    assert said[-1] == "end side"
