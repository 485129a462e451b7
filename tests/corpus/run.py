"""Runs gptcli on mutants and judges the outcomes: `python -m tests.corpus.run --seed S --count N` prints a table.

Most mutants run in forks of one process that has imported torch, which saves a second each. Every `--cold`-th runs as
`python -m gptcli`. Both enter through the program's own entry point and have 10 seconds and 2 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.corpus.model_dir import ModelDir
from tests.corpus.mutants import Mutant, mutants

_SECONDS = 10.0
_BYTES = 2 << 30
_CODES = {0, 3, 4, 5, 6, 7}
_LINES = 5
_TOLERANCE = 1e-4  # of a log-probability
_ARGUMENTS = ["generate", "In a small town", "-n", "3", "-t", "0", "--json", "--logprobs", "320"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one mutant. complaint: what is wrong with it, or ""."""

    name: str
    kind: str
    expected: str
    code: int
    seconds: float
    peak_bytes: int
    error: str
    complaint: str


def run(seed: int, count: int, *, only: str = "", cold: int = 0, jobs: int = 2) -> Iterator[Outcome]:
    """The outcome of each of `mutants`. Every `cold`-th runs in a new process, without a fork."""
    _warm()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ |= {"GPTCLI_WEIGHTS": f"{root}/weights", "XDG_DATA_HOME": f"{root}/data", "HF_HOME": f"{root}/hf"}
        ModelDir.base().write(root / "base")
        reference = {chat: _answer(_finished(_Job(root / "base", chat, cold=True))[1]) for chat in (False, True)}
        pending = enumerate(mutants(seed, count, only))
        running: list[tuple[Mutant, _Job]] = []
        while True:
            while len(running) < jobs and (following := next(pending, None)):
                index, mutant = following
                path = root / mutant.name
                mutant.model.write(path)
                entry = mutant.model.entry(path)
                running.append((mutant, _Job(path, mutant.chat, entry, cold=bool(cold) and index % cold == 0)))
            if not running:
                return
            time.sleep(0.002)
            for mutant, job in [pair for pair in running if pair[1].is_over()]:
                running.remove((mutant, job))
                yield _judged(mutant, job, reference[mutant.chat])
                shutil.rmtree(job.path, ignore_errors=True)


class _Job:
    """One run of gptcli, with its output in files beside the model."""

    def __init__(self, path: Path, chat: bool, entry: Path | None = None, *, cold: bool) -> None:
        """entry: the model's path, if it is not its directory."""
        self.path = path
        self.out, self.err = path.with_name(f"{path.name}.out"), path.with_name(f"{path.name}.err")
        self.late = False
        self._arguments = [*_ARGUMENTS, "-m", str(entry or path), *(["--chat"] if chat else [])]
        self._began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_gptcli(cold)

    def _become_gptcli(self, cold: bool) -> None:
        try:
            for number, name in ((0, os.devnull), (1, str(self.out)), (2, str(self.err))):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
            limit = _BYTES if cold else _BYTES + _address_space()
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if cold:
                os.execv(sys.executable, [sys.executable, "-m", "gptcli", *self._arguments])
            from gptcli.__main__ import main

            sys.argv = ["gptcli", *self._arguments]
            sys.stdin = open(0, closefd=False)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            main()
        finally:
            os._exit(99)

    def is_over(self) -> bool:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        self.seconds = time.monotonic() - self._began
        if not pid:
            if self.seconds > _SECONDS:
                self.late = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            return False
        self.code = os.waitstatus_to_exitcode(status)
        self.peak_bytes = usage.ru_maxrss * 1024
        return True


def _judged(mutant: Mutant, job: _Job, reference: dict[str, object]) -> Outcome:
    out, err = job.out.read_bytes(), job.err.read_bytes()
    job.out.unlink()
    job.err.unlink()
    return Outcome(
        mutant.name,
        mutant.kind,
        mutant.expected,
        job.code,
        round(job.seconds, 3),
        job.peak_bytes,
        err.decode("utf-8", "backslashreplace")[:300],
        _complaint(mutant.expected, job, out, err, reference),
    )


def _complaint(expected: str, job: _Job, out: bytes, err: bytes, reference: dict[str, object]) -> str:
    if job.late:
        return "hang"
    if job.code < 0:
        return f"signal {signal.Signals(-job.code).name}"
    if job.code not in _CODES:
        return f"exit code {job.code}"
    if b"Traceback" in err or b"panicked" in err:
        return "traceback"
    text = err.decode("utf-8", "backslashreplace")
    if len(text.splitlines()) > _LINES or any(not char.isprintable() and char != "\n" for char in text):
        return "babble"
    if job.code:
        after_notes = next((line for line in text.splitlines() if not line.startswith("gptcli: note: ")), "")
        if not after_notes.startswith("gptcli: error: ") or out:
            return "no error message"
        return "wrong reject" if expected == "accept" else ""
    if expected == "reject":
        return "wrong accept"
    if expected != "any" and not _same(_answer(out), reference):
        return "wrong accept"
    return ""


def _answer(out: bytes) -> dict[str, object]:
    """The ids of a run, and the log-probability of every token at every step."""
    answer = json.loads(out)
    steps = [{top["id"]: top["logprob"] for top in step["top"]} for step in answer["logprobs"]]
    return {"ids": answer["ids"], "steps": steps}


def _same(found: dict[str, object], wanted: dict[str, object]) -> bool:
    pairs = zip(found["steps"], wanted["steps"], strict=True)  # type: ignore[call-overload]
    return found["ids"] == wanted["ids"] and all(
        one.keys() == other.keys() and all(math.isclose(one[id], other[id], abs_tol=_TOLERANCE) for id in one)
        for one, other in pairs
    )


def _finished(job: _Job) -> tuple[int, bytes]:
    while not job.is_over():
        time.sleep(0.002)
    return job.code, job.out.read_bytes()


def _warm() -> None:
    """Imports what every run imports. Starts no threads, which a fork would lose."""
    import torch

    torch.set_num_threads(1)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def table(outcomes: list[Outcome]) -> str:
    """The outcomes of each kind of mutants, as a Markdown table."""
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        kinds[outcome.kind].append(outcome)
    lines = ["| kind | mutants | refused | accepted | slowest refusal | complaints |", "|---|---|---|---|---|---|"]
    for kind, of_kind in [*kinds.items(), ("**all**", outcomes)]:
        refused = [outcome for outcome in of_kind if outcome.code]
        slowest = max((outcome.seconds for outcome in refused), default=0)
        complaints = Counter(outcome.complaint for outcome in of_kind if outcome.complaint)
        said = ", ".join(f"{count} {what}" for what, count in complaints.items()) or "none"
        accepted = len(of_kind) - len(refused)
        lines.append(f"| {kind} | {len(of_kind)} | {len(refused)} | {accepted} | {slowest:.2f} s | {said} |")
    peak = max(outcome.peak_bytes for outcome in outcomes)
    return "\n".join(lines) + f"\n\nPeak memory {peak / 1e6:.0f} MB."


def main() -> None:
    """Prints the table and every complaint; exits with 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", default="", help="how the names of the kinds of mutants begin, such as gguf")
    parser.add_argument("--cold", type=int, default=0, help="every how many mutants one runs in a new process")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="a JSON object a mutant instead of the table")
    given = parser.parse_args()
    outcomes = []
    for outcome in run(given.seed, given.count, only=given.only, cold=given.cold, jobs=given.jobs):
        outcomes.append(outcome)
        if given.json:
            print(json.dumps(asdict(outcome)), flush=True)
        elif outcome.complaint:
            print(f"{outcome.complaint}: {outcome}", flush=True)
    if not given.json:
        print(table(outcomes))
    sys.exit(any(outcome.complaint for outcome in outcomes))


if __name__ == "__main__":
    main()
