"""Makes a regular expression that finds any of many literals. Knows nothing of tokens.

An alternation of thousands takes minutes on a text with a million beginnings of literals, because it tries each
literal at each. This pattern branches by letter, and compares each letter of the text with a few others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import groupby

_MOST_ALTERNATIVES = 16  # tried one after the other


def regex_for_any(literals: Sequence[str]) -> str:
    """A pattern that matches the longest fitting literal. literals: unique and sorted.

    Raises RecursionError if hundreds of literals begin with one another.
    """
    prefix = os.path.commonprefix([literals[0], literals[-1]])
    may_end = literals[0] == prefix
    suffixes = [literal[len(prefix) :] for literal in literals[may_end:]]
    if not suffixes:
        return re.escape(prefix)
    groups = [list(group) for _, group in groupby(suffixes, key=lambda suffix: suffix[0])]
    return f"{re.escape(prefix)}(?:{_regex_for_groups(groups)}){'?' if may_end else ''}"


def _regex_for_groups(groups: Sequence[Sequence[str]]) -> str:
    """A pattern for literals grouped by first letter; while there are many groups, a lookahead picks one half."""
    if len(groups) <= _MOST_ALTERNATIVES:
        return "|".join(map(regex_for_any, groups))
    middle = len(groups) // 2
    return "|".join(
        f"(?=[{re.escape(half[0][0][0])}-{re.escape(half[-1][0][0])}])(?:{_regex_for_groups(half)})"
        for half in (groups[:middle], groups[middle:])
    )
