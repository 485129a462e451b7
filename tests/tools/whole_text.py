"""Separates calls from a whole text."""

from __future__ import annotations

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
