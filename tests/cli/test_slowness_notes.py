"""Notes that say why text comes slower than it could."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.cuda.static_step import Outputs
from gptcli.kernels import bindings
from gptcli.runtime import device_plan as device
from tests.cli.conftest import Cli

NOTE = (
    "gptcli: note: slower than it could be: the decode step could not be recorded: "
    "operation not permitted when stream is capturing\n"
)


def refused(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """Raises what torch raises for an operation that a graph cannot record."""
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(autouse=True)
def nothing_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans a device whose graphs do not work."""
    plan_for = device.plan_for

    def planned(*arguments: Any) -> device.DevicePlan:
        plan = plan_for(*arguments)
        return replace(plan, weights=replace(plan.weights, library=None), library=None, capture=refused)

    monkeypatch.setattr(device, "plan_for", planned)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_note_says_why_text_comes_slower(command: str, cli: Cli, tiny_model: Path) -> None:
    arguments = (command, "-m", tiny_model, "-n", "3", "hello")
    done = cli(*arguments)
    assert (done.code, done.err) == (0, NOTE) and done.out
    assert cli(*arguments, "--quiet").err == ""


def test_bench_notes_it_too_and_reports_no_graphs(cli: Cli, tiny_model: Path) -> None:
    done = cli("bench", "-m", tiny_model, "-p", "4", "-n", "2", "--repeats", "1", "--json")
    assert (done.code, done.err) == (0, NOTE) and b'"kernels": "torch"' in done.out


def test_missing_kernels_are_noted_unless_off(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "built_file", lambda: None)
    bindings.functions.cache_clear()
    try:
        arguments = ("generate", "-m", tiny_model, "-n", "3", "hello")
        assert "the CPU kernels are not built: install a C compiler" in cli(*arguments).err
        monkeypatch.setenv("GPTCLI_KERNELS", "off")
        bindings.functions.cache_clear()
        assert "not built" not in cli(*arguments).err
    finally:
        bindings.functions.cache_clear()
