"""Draws probabilities on a terminal: the shaded text, a legend, and a table of alternatives."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gptcli.cli.probabilities.shaded_tokens import STEPS, ShadedToken, shaded_groups, step_of
from gptcli.cli.terminal.capabilities import is_dumb_terminal, uses_colour
from gptcli.cli.terminal.columns import fitted, packed, terminal_columns, width
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.token_flow import TokenFlow, paint, spell

_UNDERLINE = "\x1b[4m"
_NUMBERS = 14  # columns of a row before its token: number and probability
_TOKEN_COLUMNS = 16  # at most


class ShadedText:
    """Draws a text on the terminal, token by token."""

    def __init__(self, sink: StdoutSink) -> None:
        self._sink = sink
        self._colour = uses_colour(sink.is_terminal)
        self._columns = terminal_columns()
        self._flow = TokenFlow(self._columns, colour=self._colour)
        self._shown: list[ShadedToken] = []

    def show(self, tokens: Iterable[ShadedToken]) -> None:
        """Draws tokens that make whole characters, starting on a new line."""
        if not self._shown:
            self._sink.end_line()
        for group in shaded_groups(tokens):
            self._sink.draw(self._flow.add(group.look, self._style(group.probability)))
            self._shown += group.tokens

    def end(self) -> None:
        """Ends the text."""
        self._sink.draw(self._flow.end())

    def list_alternatives(self) -> None:
        """A row for each token of the text: its probability, and what else was likely."""
        for number, token in enumerate(self._shown, 1):
            self._sink.draw(self._row(number, token))

    def explain_shades(self) -> None:
        """Draws the legend of the shades."""
        if self._colour:
            styles = {f" {step.label} ": self._style(step.least) for step in STEPS}
            for line in packed(["probability", *styles], " ", self._columns):
                self._sink.draw(" ".join(paint(styles.get(word, ""), word) for word in line) + "\n")
        elif self._style(0.0):
            self._sink.draw("underlined: the model gave it a probability under 0.1\n")

    def _style(self, probability: float | None) -> str:
        """The escape sequence for a probability; without colour only the underline is left."""
        if probability is None or is_dumb_terminal():
            return ""
        step = step_of(probability)
        if not self._colour:
            return _UNDERLINE if step.underlined else ""
        return f"\x1b[{'4;' if step.underlined else ''}{step.code}m"

    def _row(self, number: int, token: ShadedToken) -> str:
        """A token and as many of its alternatives as fit into the line."""
        probability = None if token.logprob is None else math.exp(token.logprob)
        shown = "     -" if probability is None else f"{probability:6.3f}"
        columns = max(1, min(_TOKEN_COLUMNS, self._columns - _NUMBERS))
        name = fitted(spell(token.data), columns)
        row = f"{number:5} {paint(self._style(probability), shown)}  {name} "
        taken = _NUMBERS + columns + 1
        for other in token.top:
            text = f" {spell(other.data)} {math.exp(other.logprob):.3f} "
            taken += width(text)
            if taken > self._columns:
                break
            row += paint("\x1b[1m" if self._colour and other.id == token.id else "", text)
        return row.rstrip(" ") + "\n"
