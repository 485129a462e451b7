"""The README's `console` blocks are what gptcli prints; its exit codes are the program's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptcli
from gptcli.checkpoint.registry import FAMILIES
from gptcli.errors import ExitCode

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = [
    tuple(example.split("\n", 1))
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for example in block.removeprefix("$ ").split("\n$ ")
]


@pytest.mark.real
@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_the_readme_shows(command: str, output: str, real_weights: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # The kernels' rounding is not every machine's; torch's is.
        env=os.environ | {"PATH": path, "GPTCLI_WEIGHTS": str(real_weights), "GPTCLI_KERNELS": "off"},
        cwd=tmp_path,
        text=True,
    )
    assert done.stdout.rstrip("\n") == output.rstrip("\n")


def test_there_are_examples_to_check() -> None:
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_in_the_readme(code: ExitCode) -> None:
    assert re.search(rf"^\| {code.value} \|", README, re.MULTILINE)


def test_the_table_of_model_types_is_what_models_supported_prints() -> None:
    command = [sys.executable, "-m", "gptcli", "models", "--supported"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    printed = [tuple(line.split("\t")) for line in out.splitlines()]
    assert len(printed) == len(FAMILIES)
    assert re.findall(r"^\| `(\S+)` \| (.*) \|$", README, re.MULTILINE) == printed


def test_the_python_names_in_the_readme_exist() -> None:
    for name in re.findall(r"gptcli\.([A-Za-z]\w*)", "".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))):
        assert hasattr(gptcli, name), name
