"""What the tests that kill share: a death in the middle of a write, a killed fork, and the command line."""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol


class Loss(AssertionError):
    """Something that a kill must leave alone is gone, doubled, or another."""


class Report(Protocol):
    """The results of all kills."""

    kills: int

    @property
    def summary(self) -> str:
        """What they left, in words."""


def is_torn(file: Path) -> bool:
    """Whether a file's last line is incomplete."""
    return file.exists() and not file.read_bytes().endswith(b"\n")


def die_in_write(module: Any, number: int, share: float) -> None:
    """Makes this process die in its module's write of this number to a file, after this share of the line."""
    writes = 0

    def write(descriptor: int, line: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes < number:
            return os.write(descriptor, line)
        os.write(descriptor, line[: round(share * len(line))])
        die()

    module.os = SimpleNamespace(**vars(os) | {"write": write})


def die() -> NoReturn:
    """Kills this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")


def was_killed(work: Callable[[], int], after_s: float | None, endings: Sequence[int] = (0,)) -> bool:
    """Does work in a fork, which is killed after so many seconds, or never by us; returns whether it was killed.

    work: returns an exit code. Raises Loss for one that is not among `endings`.
    """
    process = os.fork()
    if not process:
        try:
            os._exit(work())
        finally:
            os._exit(99)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code not in (-signal.SIGKILL, *endings):
        raise Loss(f"it ended with {code}")
    return code == -signal.SIGKILL


def main(description: str, kills: int, kill: Callable[[int, random.Random, Path], Report]) -> int:
    """Runs so many kills as the command line says, or else `kills`, and prints the results. Returns the exit code."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=kills)
    parser.add_argument("--seed", type=int, default=0, help="of the moments; how far a process is by then is chance")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        try:
            report = kill(given.kills, random.Random(given.seed), Path(directory))
        except Loss as loss:
            print(f"lost: {loss}")
            return 1
    print(f"{report.kills} kills in {time.monotonic() - begun:.0f} s, {report.summary}")
    return 0
