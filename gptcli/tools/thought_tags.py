"""The tags around a model's thoughts, and their beginnings at the end of a text."""

from __future__ import annotations

OPENING, CLOSING = "<think>", "</think>"


def overlap(text: str, mark: str) -> int:
    """The number of characters at the text's end that may begin the mark."""
    return max((count for count in range(1, len(mark)) if text.endswith(mark[:count])), default=0)
