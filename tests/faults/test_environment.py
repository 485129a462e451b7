"""Too little memory, files or space; a missing home or working directory; closed streams."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Result, shell

pytestmark = pytest.mark.usefixtures("tiny_by_default")
RUN = "$gptcli generate hi -n 1"


@pytest.mark.parametrize("kilobytes", [60_000, 450_000, 650_000])
def test_too_little_memory_for_torch_is_an_error_and_no_crash(kilobytes: int) -> None:
    done = shell(f"ulimit -v {kilobytes}; {RUN}")
    assert (done.code, done.out) == (5, b"")
    assert re.match(r"gptcli: error: (out of memory|torch needs \d+ bytes of address space)", done.err)


def test_a_file_that_may_not_grow_is_an_output_error(tmp_path: Path) -> None:
    done = shell(f"ulimit -f 0; {RUN} > {tmp_path}/out")
    assert done == Result(8, b"", "gptcli: error: cannot write: standard output: File too large\n")


@pytest.mark.parametrize(("limit", "written"), [("unlimited", True), ("1", False)])
def test_half_of_a_module_is_never_kept(limit: str, written: bool, tmp_path: Path) -> None:
    done = shell(f"ulimit -f {limit}; PYTHONPYCACHEPREFIX={tmp_path} PYTHONDONTWRITEBYTECODE= $gptcli --version")
    assert done.code == 0
    assert any("app." in file.name for file in tmp_path.rglob("*.pyc")) == written


@pytest.mark.parametrize("limit", ["-n 8", "-v 2097152"], ids=["open files", "address space"])
def test_few_files_and_two_gigabytes_are_enough(limit: str) -> None:
    assert shell(f"ulimit {limit}; {RUN}").code == 0


def test_too_few_open_files_for_a_template_are_an_error() -> None:
    shell(f"ulimit -n 5; {RUN} --chat").fails(5, "gptcli: error: cannot start a process to open a template in: ")


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_a_template_is_rendered_whatever_is_closed(closed: str) -> None:
    done, expected = (shell(f"$gptcli generate --chat hi -n 3 -t 0 {each}") for each in (closed, ""))
    assert (done.code, done.err) == (0, "") and done.out == expected.out


def test_a_working_directory_that_is_gone_is_no_crash(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    done = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; {RUN}")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("name", ["GPTCLI_WEIGHTS", "HF_HOME"])
def test_a_home_of_no_user_has_no_models(name: str) -> None:
    places = {"GPTCLI_WEIGHTS": "/nowhere"} | {name: "~nobody-here/x"}
    done = shell("unset GPTCLI_MODEL; $gptcli generate --offline hi", **places)
    note, error, *_ = done.err.splitlines()
    assert done.code == 4 and error.startswith("gptcli: error: no such model: ")
    assert note == f"gptcli: note: GPTCLI_WEIGHTS: there is no directory {places['GPTCLI_WEIGHTS']}"
