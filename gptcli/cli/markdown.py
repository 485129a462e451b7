"""Streams Markdown to a terminal: finished blocks are printed once, only the open one is redrawn."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments

from gptcli.cli.sink import clean

_FRAME_S = 1 / 15
_REST = 10  # times as long as it took to draw
_PARAGRAPH, _RULE = "x\n\n", "---\n\n"


class MarkdownStream:
    """Text in, Markdown blocks on stdout. Wrong guesses about the open block vanish when it is redrawn."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        # No HTML: rich shows none, and a model's <think> would vanish with all that is in it.
        self._parser = MarkdownIt("commonmark", {"html": False}).enable("table").enable("strikethrough")
        self._live = Live(console=self._console, transient=True, auto_refresh=False)
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
        self._live.stop()
        self._print(self._open)
        self._open = ""

    def write(self, text: str) -> None:
        """Takes the next text."""
        self._open += clean(text)
        begun = time.monotonic()
        if begun < self._next_frame:
            return
        self._print_finished()
        self._live.start()
        # The newest lines: what is above the screen could not be erased.
        self._live.update(_segments(self._drawn(self._open)[1 - self._console.height :]), refresh=True)
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
        self._live.update("", refresh=True)
        self._print(self._open[:border])
        self._open = self._open[border:]
        self._before = _RULE if blocks[-2][1] == "hr" else _PARAGRAPH

    def _print(self, text: str) -> None:
        self._console.print(_segments(self._drawn(text)), end="")

    def _drawn(self, text: str) -> list[list[Segment]]:
        """The lines that show a text, behind what is before it."""
        return self._lines(self._before + text)[len(self._lines(self._before)) :]

    def _lines(self, text: str) -> list[list[Segment]]:
        markdown = Markdown("", hyperlinks=False)
        markdown.parsed = self._parser.parse(text)
        return self._console.render_lines(markdown, pad=False) if text.strip() else []


def _segments(lines: list[list[Segment]]) -> Segments:
    """Lines as they were drawn. Cleaned once more, since Markdown's entities can spell what a text may not contain."""
    return Segments([Segment(clean(text), style) for line in lines for text, style, _ in [*line, Segment.line()]])
