from __future__ import annotations

from pathlib import Path

from tests.chat.session_mutants import outcomes


def test_a_damaged_session_is_opened_or_refused(tmp_path: Path) -> None:
    """200 sessions; a nightly run takes any number."""
    found = list(outcomes(range(200), tmp_path))
    assert [outcome for outcome in found if outcome.complaint] == []
    results = [outcome.result for outcome in found]
    assert min(results.count("opened"), results.count("refused as sessions")) > 30
