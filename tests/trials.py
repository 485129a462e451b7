"""Trials with random inputs, each made from a number alone: what became of them, and their command line."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """What became of an input. complaint: what is wrong with that, or ""."""

    seed: int
    result: str
    complaint: str = ""


def tried(seeds: Iterable[int], trial: Callable[[random.Random], str]) -> Iterator[Outcome]:
    """The outcome of each trial, which returns a word for it, or raises anything at all if something is wrong."""
    for seed in seeds:
        try:
            yield Outcome(seed, trial(random.Random(seed)))
        except Exception as error:  # whatever it is, it is what was looked for
            yield Outcome(seed, "wrong", "".join(traceback.format_exception(error, limit=-3)))


def main(description: str, outcomes: Callable[[Iterable[int], Path], Iterator[Outcome]]) -> int:
    """Prints the complaints about so many seeds, and how often what came. Returns the exit code.

    outcomes: of seeds, with a new directory.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="of the first; each later one has the next")
    parser.add_argument("--count", type=int, default=2000)
    given = parser.parse_args()
    begun, results = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {f"XDG_{kind}_HOME": f"{directory}/{kind}" for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
        for outcome in outcomes(range(given.seed, given.seed + given.count), Path(directory)):
            results[outcome.result] += 1
            if outcome.complaint:
                print(f"seed {outcome.seed}: {outcome.complaint}", flush=True)
    counts = ", ".join(f"{count} {result}" for result, count in results.most_common())
    print(f"{given.count} in {time.monotonic() - begun:.0f} s: {counts}")
    return int("wrong" in results)
