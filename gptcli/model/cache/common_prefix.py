"""The common prefix of two texts. No torch."""

from __future__ import annotations

from collections.abc import Sequence


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens in the longest common prefix of two texts."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:  # far faster than one by one
        return most
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), most)
