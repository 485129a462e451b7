"""A conversation with the tiny model, at its prompt."""

from __future__ import annotations

import pytest

from tests.cli.chat_terminal import HELLO, Chat


@pytest.fixture(autouse=True)
def _tiny(tiny_by_default: None) -> None:
    pass


@pytest.fixture
def chat() -> Chat:
    """A conversation at its first prompt."""
    return Chat(HELLO).ready()
