"""Shows an answer as it comes: thoughts dimmed or left out, the rest as Markdown, plain or shaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.chat.session import TurnsDropped
from gptcli.chat.thinking import Thoughts, opens_thoughts
from gptcli.cli.probabilities.sample_display import SampleDisplay
from gptcli.cli.terminal.capabilities import is_dumb_terminal, uses_colour
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import OutputError
from gptcli.generation.events import TextDelta
from gptcli.language_model import ChatSession
from gptcli.tools.thought_tags import CLOSING, OPENING

if TYPE_CHECKING:
    from gptcli.cli.terminal.background_colour import Rgb
    from gptcli.cli.terminal.markdown_stream import MarkdownStream

_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
SHOW_THINKING = "show_thinking"  # the name of `thoughts` in /set


@dataclass
class DisplaySettings:
    """How answers are shown. probabilities: shades the whole text by them, thoughts included."""

    markdown: bool = True
    thoughts: bool = True
    stats: bool = False
    probabilities: bool = False


class AnswerDisplay:
    """Shows a session's next answer on the terminal; `progress` until its first text.

    background: returns the terminal's; None asks the terminal.
    """

    def __init__(
        self,
        settings: DisplaySettings,
        sink: StdoutSink,
        progress: ProgressLine,
        session: ChatSession,
        background: Callable[[], Rgb | None] | None = None,
    ) -> None:
        self._sink = sink
        self._progress = progress
        self._shows_thoughts = settings.thoughts
        self._thoughts = Thoughts(inside=opens_thoughts(session))
        self._in_thoughts = False
        self._shaded: SampleDisplay | None = None
        if settings.probabilities:
            self._shaded = SampleDisplay(session.lm.tokenizer, sink, alternatives=0, explain=False)
        self._markdown: MarkdownStream | None = None
        if settings.markdown and not self._shaded and not is_dumb_terminal():
            from gptcli.cli.terminal.background_colour import terminal_background
            from gptcli.cli.terminal.markdown_stream import MarkdownStream

            self._markdown = MarkdownStream(background=(background or terminal_background)())

    def close(self) -> None:
        """Shows pending text, and ends the last line."""
        self._progress.close()
        with contextlib.suppress(OSError, OutputError):  # the terminal may be gone
            if self._shaded:
                self._shaded.end_text()
            for text, thought in self._thoughts.flush():
                self._show(text, thought)
            self._leave_thoughts()
            if self._markdown:
                self._markdown.close()
            self._sink.end_line()

    def take(self, delta: TextDelta) -> None:
        """Takes the next text."""
        if self._shaded:
            self._progress.close()
            self._shaded.take(delta)
            return
        for text, thought in self._thoughts.push(delta.text):
            self._show(text, thought)

    def _show(self, text: str, thought: bool) -> None:
        if thought and not self._shows_thoughts:
            self._progress.tokens("thinking", 0, 0)
            return
        self._progress.close()
        if thought:
            self._enter_thoughts()
        else:
            self._leave_thoughts()
        if thought or self._markdown is None:
            self._sink.write(text.encode())
        else:
            self._markdown.write(text)

    def _enter_thoughts(self) -> None:
        if not self._in_thoughts:
            self._in_thoughts = True
            self._sink.draw(_DIM if uses_colour(True) else f"{OPENING}\n")

    def _leave_thoughts(self) -> None:
        if self._in_thoughts:
            self._in_thoughts = False
            self._sink.end_line()
            self._sink.draw(f"{_NOT_DIM}\n" if uses_colour(True) else f"{CLOSING}\n\n")


def dropped_note(dropped: TurnsDropped) -> str:
    """The note for a conversation that no longer fits."""
    turns = "turn" if dropped.turns == 1 else f"{dropped.turns} turns"
    return f"the context is full: the model no longer sees the oldest {turns}"
