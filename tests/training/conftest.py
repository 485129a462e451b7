"""Fixtures of the command line, for tests that train with it."""

from __future__ import annotations

from tests.cli.conftest import cli as cli
