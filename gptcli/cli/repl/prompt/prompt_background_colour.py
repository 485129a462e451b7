"""Asks the terminal for its background at the prompt, and takes the answer out of the keys."""

from __future__ import annotations

import select

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input

from gptcli.cli.terminal.background_colour import (
    BackgroundAnswers,
    Rgb,
    ask_background,
    background_of_environment,
    chosen_background,
    may_ask,
)


class PromptBackground:
    """The background of the terminal at the prompt. Drawing never waits for it.

    input: the keyboard, unechoed from here on. Raises UsageError for an unknown GPTCLI_THEME.
    """

    def __init__(self, input: Input) -> None:
        self._input = input
        self._chosen = chosen_background()
        self._answers: BackgroundAnswers | None = None
        if self._chosen is None and isinstance(input, Vt100Input) and may_ask():
            self._answers = answers = BackgroundAnswers()
            read = input.stdin_reader.read
            # prompt_toolkit would take the answer for keys and has no hook here, so its method is replaced.
            input.stdin_reader.read = lambda count=1024: answers.without(read(count))  # type: ignore[method-assign]
            ask_background()

    def colour(self) -> Rgb | None:
        """The background, None while it is unknown."""
        return self._chosen or (self._answers and self._answers.colour) or background_of_environment()

    def wait(self, seconds: float) -> None:
        """Waits for the answer until `seconds` after the question. Keys go to the next prompt."""
        while self._answers and not self._answers.done and (left := seconds - self._answers.age) > 0:
            if select.select([self._input.fileno()], [], [], left)[0]:
                store_typeahead(self._input, get_typeahead(self._input) + self._input.read_keys())
                if self._input.closed:
                    return
