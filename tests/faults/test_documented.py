"""Tests that documents name exist, and so do files that they link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_test_that_a_document_names_exists() -> None:
    written = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/reliability.md"))
    named = set(re.findall(r"\btest_[a-z0-9_]{20,}", text))
    assert len(named) > 50
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


@pytest.mark.parametrize("document", ["README.md", "SECURITY.md", "docs/reliability.md"])
def test_every_relative_link_in_a_document_leads_to_a_file(document: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text())
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []
