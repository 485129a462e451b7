"""Streams Markdown to a terminal: finished blocks are printed once, only the open one is redrawn."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from gptcli.cli.sink import clean

_FRAME_S = 1 / 15


class MarkdownStream:
    """Text in, Markdown blocks on stdout. Wrong guesses about the open block vanish when it is redrawn."""

    def __init__(self) -> None:
        self._console = Console()
        self._parser = MarkdownIt().enable("table").enable("strikethrough")  # what rich's Markdown parses with
        self._open = ""
        self._drawn_at = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = Live(console=self._console, transient=True, vertical_overflow="crop", auto_refresh=False)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        self._print(self._open)

    def write(self, text: str) -> None:
        """Takes the next text."""
        self._open += clean(text)
        border = self._last_block_start()
        if border:
            self._print(self._open[:border])
            self._open = self._open[border:]
        if self._live and time.monotonic() - self._drawn_at > _FRAME_S:
            self._live.update(self._rendered(self._open), refresh=True)
            self._drawn_at = time.monotonic()

    def _last_block_start(self) -> int:
        """Where the last top-level block begins, in characters: only it can still change."""
        blocks = [token for token in self._parser.parse(self._open) if token.level == 0 and token.map]
        starts = sorted({token.map[0] for token in blocks if token.map})
        if len(starts) < 2:
            return 0
        return sum(len(line) for line in self._open.splitlines(keepends=True)[: starts[-1]])

    def _print(self, text: str) -> None:
        if text.strip():
            if self._live:
                self._live.update("", refresh=True)
            self._console.print(self._rendered(text))

    def _rendered(self, text: str) -> Markdown:
        return Markdown(text, hyperlinks=False)
