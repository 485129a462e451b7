"""A regular expression for any of many texts. Knows nothing of tokens.

Tried one after the other, thousands of texts take minutes at a million places where each begins alike; here no letter
of a place is looked at for more than a few of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import groupby

_TRIED = 16  # letters that are tried one after the other


def any_of(texts: Sequence[str]) -> str:
    """The source of a pattern for the longest of some texts, which are different and sorted, that is at a place.

    Raises RecursionError where hundreds begin with one another.
    """
    shared = os.path.commonprefix([texts[0], texts[-1]])
    may_end = texts[0] == shared
    rests = [text[len(shared) :] for text in texts[may_end:]]
    if not rests:
        return re.escape(shared)
    groups = [list(group) for _, group in groupby(rests, key=lambda rest: rest[0])]
    return f"{re.escape(shared)}(?:{_one_of(groups)}){'?' if may_end else ''}"


def _one_of(groups: Sequence[Sequence[str]]) -> str:
    """A pattern for texts in groups of one first letter each; a look ahead halves them as long as they are many."""
    if len(groups) <= _TRIED:
        return "|".join(map(any_of, groups))
    half = len(groups) // 2
    return "|".join(
        f"(?=[{re.escape(part[0][0][0])}-{re.escape(part[-1][0][0])}])(?:{_one_of(part)})"
        for part in (groups[:half], groups[half:])
    )
