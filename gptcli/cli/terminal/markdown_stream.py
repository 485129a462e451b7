"""Streams Markdown to a terminal: prints finished blocks once, and redraws only the open one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Self

from markdown_it.tree import SyntaxTreeNode
from rich.cells import chop_cells
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from gptcli.cli.terminal.background_colour import Rgb
from gptcli.cli.terminal.markdown_blocks import Blocks
from gptcli.cli.terminal.signals import suspending, unsuspended
from gptcli.cli.terminal.stderr import STOP_HINT
from gptcli.cli.terminal.stdout import clean

_FRAME_S = 1 / 15
_SETTLED_S = 0.3  # tmux rewraps at once, but tells a new width up to a quarter of a second after it told the one before
_REST = 10  # pause between frames, in drawing times
# A terminal that sets one of these rewraps its screen when its width changes; others, such as xterm, do not.
_REWRAPS = ("TERM_PROGRAM", "TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "ALACRITTY_WINDOW_ID", "KONSOLE_VERSION")
_Code = ControlType | tuple[ControlType, int | str]
_START: _Code = ControlType.CARRIAGE_RETURN
_ERASE: _Code = (ControlType.ERASE_IN_LINE, 2)
_UP: _Code = (ControlType.CURSOR_UP, 1)


class MarkdownStream:
    """Takes text, draws Markdown blocks on stdout, and redraws the open block with a line below that names Ctrl-C.

    background: the terminal's; None if it is unknown.
    """

    def __init__(self, console: Console | None = None, background: Rgb | None = None) -> None:
        self._console = console or Console()
        self._blocks = Blocks(self._console, background)
        self._live: list[Text] = []  # the lines on the screen that will be redrawn, the cursor at their end
        self._width = self._console.width  # when they were drawn
        self._seen = self._width  # at the last write
        self._next_frame = 0.0
        self._open = ""
        self._printed = 0  # lines of the open block that are printed for good
        self._began = False  # whether a block was printed, so that a blank line comes before the next
        self._signals = ExitStack()
        self._signals.enter_context(suspending(self._leave_screen, lambda: None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Prints the open block as it is."""
        with self._signals:
            self._print(self._print_finished())
            self._open = ""

    def write(self, text: str) -> None:
        """Takes the next text."""
        self._open += clean(text)
        begun = time.monotonic()
        if self._seen != self._console.width:  # a window that is dragged may be narrower by now than it says
            self._seen = self._console.width
            self._next_frame = begun + _SETTLED_S
        if begun < self._next_frame:
            return
        latest = self._print_finished()
        lines = self._drawn(latest)[self._printed :]
        newest = self._newest([*lines, self._blocks.faint(STOP_HINT)])
        # Lines of code that scroll off the screen are final and printed; in other blocks every line can still change.
        final = lines[: len(lines) + 1 - len(newest)][: len(lines) - 1] if latest and latest[0].type == "fence" else []
        self._printed += len(final)
        self._show(final, newest)
        ended = time.monotonic()
        # A long block is slow to draw, so it is drawn less often: the model needs the processor.
        self._next_frame = ended + max(_FRAME_S, _REST * (ended - begun))

    def _leave_screen(self) -> None:
        """Before Ctrl-Z: erases the line that names Ctrl-C. The shell writes below, so no line is redrawn any more."""
        if self._live:
            self._live = []
            with suppress(OSError):  # the terminal may be gone
                os.write(self._console.file.fileno(), b"\r\x1b[2K")

    def _print_finished(self) -> list[SyntaxTreeNode]:
        """Prints all blocks but the last, which can still change. Returns the last, if there is one."""
        blocks = self._blocks.parse(self._open)
        if len(blocks) > 1 and blocks[-1].map:
            self._print(blocks[:-1])
            self._open = "".join(self._open.splitlines(keepends=True)[blocks[-1].map[0] :])
        return blocks[-1:]

    def _print(self, blocks: Sequence[SyntaxTreeNode]) -> None:
        """Replaces the live lines by blocks that stay."""
        lines = self._drawn(blocks)
        self._show(lines[self._printed :], [])
        self._printed = 0
        self._began = self._began or bool(lines)

    def _drawn(self, blocks: Sequence[SyntaxTreeNode]) -> list[Text]:
        """The lines of blocks that follow those printed."""
        lines = self._blocks.draw(blocks)
        return [Text()] * bool(self._began and lines) + lines

    def _newest(self, lines: Sequence[Text]) -> list[Text]:
        """The last of these lines that fit on the screen: those above it could not be erased."""
        room, first = self._console.height - 1, len(lines)
        while first and (room := room - _rows(lines[first - 1], self._console.width)) >= 0:
            first -= 1
        return list(lines[first:])

    def _show(self, final: Sequence[Text], live: list[Text]) -> None:
        """Replaces the live lines by lines that stay and by new live ones, in one write."""
        segments = [segment for line in [*final, *live] for segment in (*line.render(self._console), Segment.line())]
        if live:
            segments.pop()
        # Cleaned again: HTML entities can spell control characters.
        cleaned = [Segment(clean(text), style) for text, style, _ in segments]
        with unsuspended():
            rows = self._rows_shown()
            erase = [_START, _ERASE, *[_UP, _ERASE] * (rows - 1)] if rows else []
            # The width before drawing: a window that shrinks just afterwards has not wrapped these lines.
            self._live, self._width = live, self._console.width
            # Not cropped: the terminal wraps long lines of code, so that they can be copied whole.
            self._console.print(Control(*erase), Segments(cleaned), end="", sep="", crop=False)

    def _rows_shown(self) -> int:
        """Rows that the live lines take now, which the terminal may have rewrapped."""
        rewraps = any(name in os.environ for name in _REWRAPS)
        return sum(_rows(line, self._console.width if rewraps else self._width) for line in self._live)


def _rows(line: Text, columns: int) -> int:
    """Rows of a terminal that a line takes."""
    return 1 if line.cell_len <= columns else len(chop_cells(line.plain, columns))
