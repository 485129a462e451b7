"""Streams Markdown to a terminal: prints finished blocks once, and redraws only the open one."""

from __future__ import annotations

import os
import time
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console
from rich.control import Control
from rich.markdown import Markdown
from rich.segment import ControlType, Segment, Segments

from gptcli.cli.terminal.stdout import clean

_FRAME_S = 1 / 15
_REST = 10  # pause between frames, in drawing times
# A terminal that sets one of these rewraps its screen when its width changes; others, such as xterm, do not.
_REWRAPS = ("TERM_PROGRAM", "TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION")
_Code = ControlType | tuple[ControlType, int | str]
_START: _Code = ControlType.CARRIAGE_RETURN
_ERASE: _Code = (ControlType.ERASE_IN_LINE, 2)
_UP: _Code = (ControlType.CURSOR_UP, 1)
_PARAGRAPH, _RULE = "x\n\n", "---\n\n"


class MarkdownStream:
    """Takes text, draws Markdown blocks on stdout. A wrong guess about the open block vanishes when it is redrawn."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        # HTML stays text: rich drops it, and a model's <think> would vanish with everything inside.
        self._parser = MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough")
        self._shown: list[list[Segment]] = []  # the open block's lines on the screen, the cursor at their end
        self._width = self._console.width  # when they were drawn
        self._next_frame = 0.0
        self._open = ""
        # Stands for the block before the open one: whether a blank line separates two blocks depends on both.
        self._before = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Prints the open block as it is."""
        self._print_finished()
        self._print(self._open)
        self._open = ""

    def write(self, text: str) -> None:
        """Takes the next text."""
        self._open += clean(text)
        begun = time.monotonic()
        if begun < self._next_frame:
            return
        self._print_finished()
        # Only the newest lines: those above the screen could not be erased.
        self._redraw(self._drawn(self._open)[1 - self._console.height :])
        ended = time.monotonic()
        # A long block is slow to draw, and is drawn less often: the model needs the processor.
        self._next_frame = ended + max(_FRAME_S, _REST * (ended - begun))

    def _print_finished(self) -> None:
        """Prints all blocks but the last, which alone can still change."""
        blocks = [
            (token.map[0], token.type) for token in self._parser.parse(self._open) if not token.level and token.map
        ]
        if len(blocks) < 2:
            return
        border = sum(len(line) for line in self._open.splitlines(keepends=True)[: blocks[-1][0]])
        self._print(self._open[:border])
        self._open = self._open[border:]
        self._before = _RULE if blocks[-2][1] == "hr" else _PARAGRAPH

    def _print(self, text: str) -> None:
        """Prints a text for good instead of the lines shown."""
        lines = self._drawn(text)
        self._redraw(lines)
        if lines:
            self._console.print()
        self._shown = []

    def _redraw(self, lines: list[list[Segment]]) -> None:
        """Replaces the lines shown, in one write."""
        rows = self._rows_shown()
        erase = [_START, _ERASE, *[_UP, _ERASE] * (rows - 1)] if rows else []
        segments = [segment for line in lines for segment in (*line, Segment.line())][:-1]
        # Cleaned again: HTML entities can spell control characters.
        cleaned = [Segment(clean(text), style) for text, style, _ in segments]
        self._console.print(Control(*erase), Segments(cleaned), end="", sep="")
        self._shown, self._width = lines, self._console.width

    def _rows_shown(self) -> int:
        """Rows that the lines shown take now: more than they were if the terminal has rewrapped them."""
        width = self._console.width
        if width >= self._width or not any(name in os.environ for name in _REWRAPS):
            return len(self._shown)
        return sum(max(1, -(-Segment.get_line_length(line) // width)) for line in self._shown)

    def _drawn(self, text: str) -> list[list[Segment]]:
        """The lines of a text that follows the block before it."""
        return self._lines(self._before + text)[len(self._lines(self._before)) :]

    def _lines(self, text: str) -> list[list[Segment]]:
        markdown = Markdown("", hyperlinks=False)
        markdown.parsed = self._parser.parse(text)
        lines = self._console.render_lines(markdown, pad=False) if text.strip() else []
        return [_trimmed(line) for line in lines]


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without trailing blanks, which a narrower window would wrap; coloured ones stay."""
    line = list(line)
    while line and not (line[-1].style and line[-1].style.bgcolor):
        text, style, _ = line.pop()
        if text.rstrip(" "):
            return [*line, Segment(text.rstrip(" "), style)]
    return line
