"""Switches in environment variables."""

from __future__ import annotations

import os

from gptcli.errors import UsageError


def switched_off(variable: str) -> bool:
    """Whether a variable is `off`; unset, empty and `on` mean on. Raises UsageError for anything else."""
    value = os.environ.get(variable, "")
    if value not in ("", "on", "off"):
        raise UsageError(f"{variable} is on or off, not {value}")
    return value == "off"
