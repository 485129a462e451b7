"""Shows an answer as it comes: thoughts dimmed or left out, the rest as Markdown or as it is."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.chat.session import TurnsDropped
from gptcli.chat.thinking import CLOSING, OPENING, Thoughts
from gptcli.cli.probabilities.sample_view import TokenViews
from gptcli.cli.terminal.stderr import Activity, is_dumb_terminal
from gptcli.cli.terminal.stdout import Sink
from gptcli.errors import OutputError
from gptcli.generation.events import TextDelta
from gptcli.language_model import LanguageModel

if TYPE_CHECKING:
    from gptcli.cli.terminal.markdown import MarkdownStream

_DIM, _PLAIN = b"\x1b[2m", b"\x1b[22m"


@dataclass
class View:
    """How answers are shown."""

    markdown: bool = True
    thoughts: bool = True
    stats: bool = False
    probabilities: bool = False  # the text is shaded by them then, thoughts and all


class Answer:
    """One answer on the terminal. `activity` shows what goes on until there is something to show."""

    def __init__(self, view: View, sink: Sink, activity: Activity, *, lm: LanguageModel, thinking: bool) -> None:
        self._sink = sink
        self._activity = activity
        self._shows_thoughts = view.thoughts
        self._thoughts = Thoughts(inside=thinking)
        self._in_thoughts = False
        self._shades = TokenViews(lm.tokenizer, sink, alternatives=0, explain=False) if view.probabilities else None
        self._markdown: MarkdownStream | None = None
        if view.markdown and not self._shades and not is_dumb_terminal():
            from gptcli.cli.terminal.markdown import MarkdownStream

            self._markdown = MarkdownStream()

    def close(self) -> None:
        """Shows what was held back, and ends the last line."""
        self._activity.close()
        with contextlib.suppress(OSError, OutputError):  # the terminal may be gone
            if self._shades:
                self._shades.end_text()
            for text, thought in self._thoughts.flush():
                self._show(text, thought)
            self._leave_thoughts()
            if self._markdown:
                self._markdown.close()
            self._sink.end_line()

    def take(self, delta: TextDelta) -> None:
        """Takes the next text."""
        if self._shades:
            self._activity.close()
            self._shades.take(delta)
            return
        for part, thought in self._thoughts.push(delta.text):
            self._show(part, thought)

    def _show(self, text: str, thought: bool) -> None:
        if thought and not self._shows_thoughts:
            self._activity.tokens("thinking", 0, 0)
            return
        self._activity.close()
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
            if _has_colour():
                self._emit(_DIM)
            else:
                self._sink.write(f"{OPENING}\n".encode())

    def _leave_thoughts(self) -> None:
        if self._in_thoughts:
            self._in_thoughts = False
            self._sink.end_line()
            if _has_colour():
                self._emit(_PLAIN)
                self._sink.write(b"\n")
            else:
                self._sink.write(f"{CLOSING}\n\n".encode())

    def _emit(self, sequence: bytes) -> None:
        os.write(sys.stdout.fileno(), sequence)


def _has_colour() -> bool:
    return not is_dumb_terminal() and not os.environ.get("NO_COLOR")


def dropped_note(dropped: TurnsDropped) -> str:
    """What a user is told when the conversation has grown too long."""
    turns = "turn" if dropped.turns == 1 else f"{dropped.turns} turns"
    return f"the context is full: the model no longer sees the oldest {turns}"
