"""Too little memory, files or space; a missing home or working directory; closed streams."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import GPTCLI, ROOT


def shell(command: str, model: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a bash command in which $gptcli is the program and $model the model."""
    names = {"gptcli": " ".join(GPTCLI), "model": str(model), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | names | environment,
        timeout=60,
    )


@pytest.mark.parametrize("kilobytes", [60_000, 450_000, 650_000])
def test_too_little_memory_to_import_torch_in_is_an_error_and_no_crash(tiny_model: Path, kilobytes: int) -> None:
    done = shell(f"ulimit -v {kilobytes}; $gptcli generate -m $model hi -n 1", tiny_model)
    assert (done.returncode, done.stdout) == (5, "")
    assert re.match(r"gptcli: error: (out of memory|torch needs \d+ bytes of address space)", done.stderr)


def test_a_file_that_may_not_grow_is_an_output_error(tiny_model: Path, tmp_path: Path) -> None:
    done = shell(f"ulimit -f 0; $gptcli generate -m $model hi -n 1 > {tmp_path}/out", tiny_model)
    assert done.returncode == 8
    assert done.stderr == "gptcli: error: cannot write: standard output: File too large\n"


def test_a_handful_of_open_files_is_enough(tiny_model: Path) -> None:
    assert shell("ulimit -n 8; $gptcli generate -m $model hi -n 1", tiny_model).returncode == 0


def test_too_few_open_files_for_a_template_are_an_error(tiny_model: Path) -> None:
    done = shell("ulimit -n 5; $gptcli generate -m $model --chat hi -n 1", tiny_model)
    assert done.returncode == 5
    assert done.stderr.startswith("gptcli: error: cannot start a process to open a template in: ")


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_a_template_is_rendered_whatever_is_closed(tiny_model: Path, closed: str) -> None:
    done = shell(f"$gptcli generate -m $model --chat hi -n 3 -t 0 {closed}", tiny_model)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == shell("$gptcli generate -m $model --chat hi -n 3 -t 0", tiny_model).stdout


def test_a_working_directory_that_is_gone_is_no_crash(tiny_model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    done = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; $gptcli generate -m $model hi -n 1", tiny_model)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["GPTCLI_WEIGHTS", "HF_HOME"])
def test_a_home_of_no_user_has_no_models(tiny_model: Path, name: str) -> None:
    places = {"GPTCLI_WEIGHTS": "/nowhere"} | {name: "~nobody-here/x"}
    done = shell("$gptcli generate --offline hi", tiny_model, **places)
    assert done.returncode == 4
    note, error, *_ = done.stderr.splitlines()
    assert note == f"gptcli: note: GPTCLI_WEIGHTS: there is no directory {places['GPTCLI_WEIGHTS']}"
    assert error.startswith("gptcli: error: no such model: ")


def test_two_gigabytes_of_address_space_are_enough(tiny_model: Path) -> None:
    assert shell("ulimit -v 2097152; $gptcli generate -m $model hi -n 1", tiny_model).returncode == 0
