"""Shows on a terminal how probable tokens are: the text in shades, their legend, and a table of alternatives."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gptcli.cli.probabilities.shading import STEPS, Shaded, Step, cells, step_of
from gptcli.cli.terminal.stderr import is_dumb_terminal
from gptcli.cli.terminal.stdout import Sink
from gptcli.cli.terminal.token_flow import TokenFlow, fitted, packed, paint, spell, terminal_columns, uses_colour, width

_UNDERLINE = "\x1b[4m"
_NUMBERS = 14  # columns of a row before its token: which it is and how probable
_TOKEN_COLUMNS = 16  # where there is room for so many


class ShadedText:
    """Draws texts on the terminal behind a sink, token by token as they come."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._colour = uses_colour(sink.is_terminal)
        self._columns = terminal_columns()
        self._flow = TokenFlow(self._columns, colour=self._colour)
        self._shown: list[Shaded] = []

    def show(self, tokens: Iterable[Shaded]) -> None:
        """Draws tokens that make whole characters, from the beginning of a line on."""
        if not self._shown:
            self._sink.end_line()
        for cell in cells(tokens):
            self._sink.draw(self._flow.add(cell.group, self._style(cell.probability)))
            self._shown += cell.tokens

    def end(self) -> None:
        """Ends a text."""
        self._sink.draw(self._flow.end())

    def list_alternatives(self) -> None:
        """A line for each token of the text that has ended: how probable it was, and what else was likely."""
        for number, token in enumerate(self._shown, 1):
            self._sink.draw(self._row(number, token))

    def explain_shades(self) -> None:
        """A line that says what the shades mean."""
        self._sink.draw(self._legend())

    def _legend(self) -> str:
        if not self._colour:
            return "underlined: the model gave it a probability under 0.1\n" if self._style(0.0) else ""
        shades = [f" {step.label} " for step in STEPS]
        styles = {shade: self._style(step.least) for shade, step in zip(shades, STEPS, strict=True)}
        lines = packed(["probability", *shades], " ", self._columns)
        return "".join(" ".join(paint(styles.get(word, ""), word) for word in line) + "\n" for line in lines)

    def _style(self, probability: float | None) -> str:
        """The escape sequence for a probability; without colour an underline is what is left."""
        if probability is None or is_dumb_terminal():
            return ""
        step = step_of(probability)
        return _sequence(step) if self._colour else _UNDERLINE if step.underlined else ""

    def _row(self, number: int, token: Shaded) -> str:
        """A token and its alternatives, as many as fit into a line."""
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


def _sequence(step: Step) -> str:
    return f"\x1b[{'4;' if step.underlined else ''}{step.code}m"
