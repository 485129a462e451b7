from __future__ import annotations

import random
from pathlib import Path

from tests.training.kills import kill


def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    report = kill(3, random.Random(3), tmp_path)
    assert report.kills == 3
    assert report.completed > 0
