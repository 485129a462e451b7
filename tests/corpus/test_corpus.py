"""350 mutants of a model, judged by `run.py`; the nightly run takes thousands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT
from tests.corpus.mutants import MUTATORS, mutants

SEED, COUNT, COLD = 2026, 350, 40


@pytest.mark.skipif(sys.platform != "linux", reason="its limits are Linux's")
def test_no_mutant_crashes_hangs_babbles_or_is_wrongly_accepted() -> None:
    """In another process, because `run.py` forks."""
    command = [sys.executable, "-m", "tests.corpus.run", "--json", "--seed", str(SEED), "--count", str(COUNT)]
    done = subprocess.run([*command, "--cold", str(COLD)], cwd=ROOT, capture_output=True, text=True)
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == COUNT, done.stderr
    assert [outcome for outcome in outcomes if outcome["complaint"]] == []
    assert {outcome["kind"] for outcome in outcomes} == {mutator.__name__ for mutator in MUTATORS}
    assert sum(outcome["code"] == 0 for outcome in outcomes) > COUNT // 8  # or everything is refused for one reason


def test_the_same_seed_makes_the_same_mutants() -> None:
    first, again, other = (list(mutants(seed, len(MUTATORS))) for seed in (1, 1, 2))
    assert [mutant.model.files for mutant in first] == [mutant.model.files for mutant in again]
    assert [mutant.model.files for mutant in first] != [mutant.model.files for mutant in other]


def test_mutants_can_be_written_down(tmp_path: Path) -> None:
    arguments = ["--seed", "1", "--count", "70", "--out", str(tmp_path / "corpus")]
    subprocess.run([sys.executable, "-m", "tests.corpus.mutants", *arguments], cwd=ROOT, check=True)
    expected = json.loads((tmp_path / "corpus" / "expected.json").read_text())
    assert len(expected) == 70
    assert all((tmp_path / "corpus" / name).is_dir() for name in expected)
