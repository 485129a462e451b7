from __future__ import annotations

from pathlib import Path

from tests.tools.call_texts import outcomes


def test_calls_in_any_text_are_whole_or_left_alone(tmp_path: Path) -> None:
    """1,500 texts; a nightly run takes any number."""
    found = list(outcomes(range(1500), tmp_path))
    assert [outcome for outcome in found if outcome.complaint] == []
    results = [outcome.result for outcome in found]
    assert min(results.count("with calls"), results.count("without calls")) > 300
