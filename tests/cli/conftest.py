"""Runs the command line in this process, which is fast, or as a program where the process matters."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
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


Cli = Callable[..., Result]


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

    def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        return cli("generate", "-m", tiny_model, "-t", "0", *arguments, stdin=stdin)

    return call


@pytest.fixture
def tiny_by_default(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tiny model the default."""
    monkeypatch.setenv("GPTCLI_MODEL", str(tiny_model))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every model say these pieces of text."""

    def script(*pieces: str | bytes, **rest: Any) -> None:
        follow(Script(pieces=pieces, **rest), monkeypatch.setattr)

    return script
