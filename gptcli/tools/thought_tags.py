"""The tags around what a model thinks before it answers, and how they are found in a text that comes."""

from __future__ import annotations

OPENING, CLOSING = "<think>", "</think>"


def overlap(text: str, mark: str) -> int:
    """Characters at the text's end that may begin the mark."""
    return max((count for count in range(1, len(mark)) if text.endswith(mark[:count])), default=0)
