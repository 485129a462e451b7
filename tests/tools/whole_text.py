"""Separates calls from a text, whole or in pieces."""

from __future__ import annotations

import random
from typing import NamedTuple

from gptcli.tools.definitions import ToolCall
from gptcli.tools.formats import ToolUse
from gptcli.tools.splitter import splitter_of


class Split(NamedTuple):
    """A text without its calls, the calls, and whether it ended amid one."""

    content: str
    calls: tuple[ToolCall, ...]
    cut: bool


def split(text: str, use: ToolUse, salt: object = "", *, ended: bool = True, in_thoughts: bool = False) -> Split:
    """A text, separated; as `splitter_of` and `Splitter.flush`."""
    splitter = splitter_of(use, salt, in_thoughts=in_thoughts)
    content = splitter.push(text) + splitter.flush(ended=ended)
    return Split(content, tuple(splitter.calls), splitter.cut)


def in_pieces(text: str, use: ToolUse, seed: int, *, ended: bool = True) -> Split:
    """A text split in pieces; whatever was shown on the way stays shown."""
    splitter, chance, content = splitter_of(use), random.Random(seed), ""
    while text:
        size = chance.choice([1, 1, 2, 7])
        content += splitter.push(text[:size])
        text = text[size:]
    return Split(content + splitter.flush(ended=ended), tuple(splitter.calls), splitter.cut)
