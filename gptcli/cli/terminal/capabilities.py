"""What the terminal can do."""

from __future__ import annotations

import os


def is_dumb_terminal() -> bool:
    """Whether the terminal obeys no escape sequences, so that it cannot erase."""
    return (os.environ.get("TERM") or "dumb") == "dumb"


def uses_colour(is_terminal: bool) -> bool:
    """Whether output to stdout may be coloured."""
    return is_terminal and not os.environ.get("NO_COLOR") and not is_dumb_terminal()
