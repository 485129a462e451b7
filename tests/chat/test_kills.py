from __future__ import annotations

import re
import subprocess
import sys

from tests.cli.conftest import ROOT


def test_a_kill_at_any_moment_loses_no_completed_turn() -> None:
    result = subprocess.run([sys.executable, "-m", "tests.chat.kills", "15"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    completed = re.search(r"0 of (\d+) completed turns lost", result.stdout)
    assert completed and int(completed[1]) > 5
