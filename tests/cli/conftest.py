"""Runs the command line in this process, which is fast, or as a program where the process matters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.app import run
from tests.cli.scripted import Script, follow

SCRIPTED = [sys.executable, "-m", "tests.cli.scripted"]
GPTCLI = [sys.executable, "-m", "gptcli"]
ROOT = Path(__file__).parents[2]
CLOSED = b"<&-"  # instead of piped bytes: stdin is closed


@dataclass(frozen=True)
class Result:
    """A run's exit code, the bytes of its stdout, the text of its stderr."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """stdout as text."""
        return self.out.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        """The JSON value on stdout."""
        return json.loads(self.out, parse_constant=pytest.fail)

    @property
    def records(self) -> list[Any]:
        """The JSON value on each line of stdout."""
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[list[str]]:
        """The fields, between tabs, of each line of stdout."""
        return [line.split("\t") for line in self.out.decode().splitlines()]

    def fails(self, code: int, *parts: str) -> None:
        """Asserts a refusal: nothing on stdout, a line of error, perhaps a hint and notes; stderr has these parts."""
        assert (self.code, self.out) == (code, b""), self.err
        error, *hint = (line for line in self.err.splitlines() if not line.startswith("gptcli: note: "))
        assert error.startswith("gptcli: error: ")
        assert len(hint) <= 1 and all(line.startswith("hint: ") for line in hint)
        assert all(char.isprintable() or char == "\n" for char in self.err)
        assert all(part in self.err for part in parts), self.err


Cli = Callable[..., Result]
Says = Callable[..., None]


class _Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """gptcli in this process. stdin: bytes piped into it; None is a terminal."""

    def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        given = _Keyboard() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", None if stdin is CLOSED else given)
        code = run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return call


@pytest.fixture
def generate(cli: Cli, tiny_model: Path) -> Cli:
    """`gptcli generate` with the tiny model, greedily, unless the arguments say otherwise."""

    return partial(cli, "generate", "-m", tiny_model, "-t", "0")


@pytest.fixture
def tiny_by_default(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tiny model the default."""
    monkeypatch.setenv("GPTCLI_MODEL", str(tiny_model))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Makes every model say these pieces of text."""

    def script(*pieces: str | bytes, **rest: Any) -> None:
        follow(Script(pieces=pieces, **rest), monkeypatch.setattr)

    return script


def shell(command: str, script: Script | None = None, **environment: str) -> Result:
    """A bash command in which $gptcli is the program, with a scripted model if there is a script."""
    program = " ".join(SCRIPTED if script else GPTCLI)
    variables = (script.environment() if script else os.environ) | {"gptcli": program, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, env=variables | environment, timeout=60
    )
    return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
