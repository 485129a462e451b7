"""Asks the terminal for its background while a conversation goes on: the answer comes among the keys, and is none."""

from __future__ import annotations

import select

from prompt_toolkit.input import Input
from prompt_toolkit.input.vt100 import Vt100Input

from gptcli.cli.terminal.background import (
    BackgroundAnswers,
    Rgb,
    ask_background,
    background_of_environment,
    chosen_background,
    may_ask,
)

_LEAVE_S = 0.5  # an answer later than this may be typed into the shell


class PromptBackground:
    """The background of the terminal at the prompt. Nothing waits for it: answers are drawn with what is known then.

    input: the keyboard, unechoed from here on. Raises UsageError for an unknown GPTCLI_THEME.
    """

    def __init__(self, input: Input) -> None:
        self._input = input
        self._chosen = chosen_background()
        self._answers: BackgroundAnswers | None = None
        if self._chosen is None and isinstance(input, Vt100Input) and may_ask():
            self._answers = answers = BackgroundAnswers()
            read = input.stdin_reader.read
            input.stdin_reader.read = lambda count=1024: answers.without(read(count))  # type: ignore[method-assign]
            ask_background()

    def colour(self) -> Rgb | None:
        """The background as far as it is known now."""
        return self._chosen or (self._answers and self._answers.colour) or background_of_environment()

    def finish(self) -> None:
        """Waits for an answer that would otherwise be typed into the shell."""
        while self._answers and not self._answers.done and (left := _LEAVE_S - self._answers.age) > 0:
            if select.select([self._input.fileno()], [], [], left)[0]:
                self._input.read_keys()
                if self._input.closed:
                    return
