"""Kills batches with SIGKILL, over and over, and checks that each request is answered once.

`python -m tests.cli.batch.kills 1000` runs a scripted model over a file of requests. Each process is killed at a random
moment, or during a random write, which leaves a part of a line. The next one goes on with the same output, sometimes
with `--unordered` or `--retry-failed`. When a process ends by itself, the output must have each request once, in order,
and the next batch begins. Exits with 1 at the first loss.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptcli.cli.commands.batch  # noqa: F401
from gptcli.cli.app import run
from gptcli.cli.batch import output_file
from gptcli.errors import InputError
from tests.cli.scripted import Script, follow
from tests.kills import Loss, die_in_write, is_torn, main, was_killed
from tests.tiny import make_model

_LINES = 12
_LATEST_S = 0.4  # a process is killed within this time after its start


@dataclass
class Report:
    """The results. torn: kills that left an incomplete last line; completed: batches that came to their end."""

    kills: int = 0
    torn: int = 0
    completed: int = 0

    @property
    def summary(self) -> str:
        """See `tests.kills.Report`."""
        return f"{self.torn} leaving a torn line: 0 requests lost or answered twice in {self.completed} batches"


class _SlowAndUnreliable(Script):
    """A slow model that fails now and then."""

    def stream(self, *given: Any, **named: Any) -> Iterator[Any]:
        if random.random() < 0.2:
            raise InputError("bad luck")
        return Script(pieces=("a ", "b"), piece_s=0.003).stream(*given, **named)


def work(arguments: Sequence[str], dice: random.Random) -> bool:
    """Runs a batch in a fork of this process. Returns whether it was killed."""
    in_write, number, share, moment = dice.random() < 0.5, dice.randint(1, 6), dice.random(), dice.uniform(0, _LATEST_S)
    luck = dice.random()

    def answer() -> int:
        random.seed(luck)
        sys.stderr = open(os.devnull, "w")
        if in_write:
            die_in_write(output_file, number, share)
        follow(_SlowAndUnreliable(), setattr)
        return run(arguments)

    return was_killed(answer, None if in_write else moment, endings=(0, 9))


def check(out: Path) -> None:
    """Raises Loss unless the output has each request once, in order."""
    found = [json.loads(line)["custom_id"] for line in out.read_bytes().splitlines()]
    if found != [f"r{number}" for number in range(_LINES)]:
        raise Loss(f"the output has {found}")


def kill(kills: int, dice: random.Random, directory: Path) -> Report:
    """Kills so many processes. Raises Loss."""
    report = Report()
    source, out = directory / "in.jsonl", directory / "out.jsonl"
    os.environ["GPTCLI_MODEL"] = str(make_model(directory / "tiny"))
    source.write_text("".join(json.dumps({"custom_id": f"r{n}", "prompt": "hi"}) + "\n" for n in range(_LINES)))
    while report.kills < kills:
        ways = [option for option in ("--unordered", "--retry-failed") if dice.random() < 0.4]
        if work(["batch", str(source), "-o", str(out), "-q", *ways], dice):
            report.kills += 1
            report.torn += is_torn(out) and out.stat().st_size > 0
        elif "--unordered" not in ways:
            check(out)
            report.completed += 1
            out.unlink()
    return report


if __name__ == "__main__":
    sys.exit(main(__doc__, 1000, kill))
