from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.browser import PROGRAM
from tests.serve.page_texts import outcomes


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")
def test_no_text_is_more_than_text(tmp_path: Path) -> None:
    """40 texts; a nightly run takes any number."""
    found = list(outcomes(range(40), tmp_path))
    assert [outcome for outcome in found if outcome.complaint] == []
    assert sum(outcome.result == "with links" for outcome in found) > 5
