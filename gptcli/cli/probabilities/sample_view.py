"""What `generate` shows of a text's tokens as they are drawn: shades on the terminal, explanations on stderr."""

from __future__ import annotations

from gptcli.cli.probabilities.explain_table import ExplainTable
from gptcli.cli.probabilities.shaded_text import ShadedText
from gptcli.cli.probabilities.shading import Shaded, ShownTokens
from gptcli.cli.terminal.stdout import Sink
from gptcli.generation.events import Finished, TextDelta
from gptcli.text.tokenizer import Tokenizer


class TokenViews:
    """Follows one sample, and keeps the tokens that its text is made of.

    alternatives: on a terminal the text is shaded, with so many of the likeliest tokens at each place below it; None is
    plain. explain: whether a table says why each token was drawn.
    """

    def __init__(self, tokenizer: Tokenizer, sink: Sink, *, alternatives: int | None, explain: bool) -> None:
        self.tokens: list[Shaded] = []
        self._shown = ShownTokens(tokenizer)
        self._alternatives = alternatives
        self._text = ShadedText(sink) if alternatives is not None and sink.is_terminal else None
        self._table = ExplainTable(at_end=sink.is_terminal) if explain else None

    @property
    def shaded(self) -> bool:
        """Whether the text is written here."""
        return self._text is not None

    def take(self, delta: TextDelta) -> None:
        """Takes the next piece of text."""
        self._show(self._shown.take(delta))
        if self._table:
            self._table.add(delta.steps)

    def end_text(self) -> None:
        """Ends a shaded text: its alternatives follow, and what the shades mean."""
        self._show(self._shown.end())
        if self._text:
            self._text.end()
            self._text.explain_shades()
            if self._alternatives:
                self._text.list_alternatives()

    def close(self, finished: Finished) -> None:
        """Ends the table, below the text and whatever belongs to that."""
        if self._table:
            self._table.close(finished.logprobs or ())

    def _show(self, tokens: list[Shaded]) -> None:
        self.tokens += tokens
        if self._text:
            self._text.show(tokens)
