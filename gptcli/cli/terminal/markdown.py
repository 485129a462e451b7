"""Streams Markdown to a terminal: finished blocks are printed once, only the open one is redrawn."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console
from rich.control import Control
from rich.markdown import Markdown
from rich.segment import ControlType, Segment, Segments

from gptcli.cli.terminal.stdout import clean

_FRAME_S = 1 / 15
_REST = 10  # times as long as it took to draw
# A terminal that sets one of these wraps what it shows anew when its width changes; others, such as xterm, do not.
_WRAPS_ANEW = ("TERM_PROGRAM", "TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION")
_Code = ControlType | tuple[ControlType, int | str]
_START: _Code = ControlType.CARRIAGE_RETURN
_ERASE: _Code = (ControlType.ERASE_IN_LINE, 2)
_UP: _Code = (ControlType.CURSOR_UP, 1)
_PARAGRAPH, _RULE = "x\n\n", "---\n\n"


class MarkdownStream:
    """Text in, Markdown blocks on stdout. Wrong guesses about the open block vanish when it is redrawn."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        # No HTML: rich shows none, and a model's <think> would vanish with all that is in it.
        self._parser = MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough")
        self._shown: list[list[Segment]] = []  # lines of the open block that are on the screen, the cursor behind them
        self._width = self._console.width  # when they were drawn
        self._next_frame = 0.0
        self._open = ""
        # What stands for the block before the open one: the blank line between two depends on both.
        self._before = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Prints what is still open, as it is."""
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
        # The newest lines: what is above the screen could not be erased.
        self._redraw(self._drawn(self._open)[1 - self._console.height :])
        ended = time.monotonic()
        # A long block takes long to draw: it comes less often then, for the model shares the processor.
        self._next_frame = ended + max(_FRAME_S, _REST * (ended - begun))

    def _print_finished(self) -> None:
        """Prints all blocks but the last: only that can still change."""
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
        """Shows a text for good, in the place of what is shown."""
        lines = self._drawn(text)
        self._redraw(lines)
        if lines:
            self._console.print()
        self._shown = []

    def _redraw(self, lines: list[list[Segment]]) -> None:
        """Puts lines in the place of those that are shown, in one write."""
        rows = self._rows_shown()
        erase = [_START, _ERASE, *[_UP, _ERASE] * (rows - 1)] if rows else []
        segments = [segment for line in lines for segment in (*line, Segment.line())][:-1]
        # Cleaned once more, since Markdown's entities can spell what a text may not contain.
        cleaned = [Segment(clean(text), style) for text, style, _ in segments]
        self._console.print(Control(*erase), Segments(cleaned), end="", sep="")
        self._shown, self._width = lines, self._console.width

    def _rows_shown(self) -> int:
        """How many rows the lines take; more than they were if the window has shrunk and the terminal wraps anew."""
        width = self._console.width
        if width >= self._width or not any(name in os.environ for name in _WRAPS_ANEW):
            return len(self._shown)
        return sum(max(1, -(-Segment.get_line_length(line) // width)) for line in self._shown)

    def _drawn(self, text: str) -> list[list[Segment]]:
        """The lines that show a text, behind what is before it."""
        return self._lines(self._before + text)[len(self._lines(self._before)) :]

    def _lines(self, text: str) -> list[list[Segment]]:
        markdown = Markdown("", hyperlinks=False)
        markdown.parsed = self._parser.parse(text)
        lines = self._console.render_lines(markdown, pad=False) if text.strip() else []
        return [_trimmed(line) for line in lines]


def _trimmed(line: list[Segment]) -> list[Segment]:
    """A line without the blanks at its end, which a narrower window would wrap; they stay where they are coloured."""
    line = list(line)
    while line and not (line[-1].style and line[-1].style.bgcolor):
        text, style, _ = line.pop()
        if text.rstrip(" "):
            return [*line, Segment(text.rstrip(" "), style)]
    return line
