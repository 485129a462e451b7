"""Shows the tokens of a sample as they are drawn: shaded on the terminal, explained on stderr."""

from __future__ import annotations

from gptcli.cli.probabilities.explain_table import ExplainTable
from gptcli.cli.probabilities.shaded_tokens import EmittedTokens, ShadedToken
from gptcli.cli.probabilities.terminal_shades import ShadedText
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.generation.events import Finished, TextDelta
from gptcli.text.tokenizer import Tokenizer


class SampleDisplay:
    """Follows one sample, and keeps the tokens of its text.

    alternatives: on a terminal the text is shaded, and this many of the likeliest tokens follow for each position; None
    shows it plain. explain: prints the table that says why each token was drawn.
    """

    def __init__(self, tokenizer: Tokenizer, sink: StdoutSink, *, alternatives: int | None, explain: bool) -> None:
        self.tokens: list[ShadedToken] = []
        self._emitted = EmittedTokens(tokenizer)
        self._alternatives = alternatives
        self._text = ShadedText(sink) if alternatives is not None and sink.is_terminal else None
        self._table = ExplainTable(at_end=sink.is_terminal) if explain else None

    @property
    def shaded(self) -> bool:
        """Whether this writes the text."""
        return self._text is not None

    def take(self, delta: TextDelta) -> None:
        """Takes the next piece of text."""
        self._show(self._emitted.take(delta))
        if self._table:
            self._table.add(delta.steps)

    def end_text(self) -> None:
        """Ends a shaded text with its legend and alternatives."""
        self._show(self._emitted.end())
        if self._text:
            self._text.end()
            self._text.explain_shades()
            if self._alternatives:
                self._text.list_alternatives()

    def close(self, finished: Finished) -> None:
        """Ends the table, which comes after the text."""
        if self._table:
            self._table.close(finished.logprobs or ())

    def _show(self, tokens: list[ShadedToken]) -> None:
        self.tokens += tokens
        if self._text:
            self._text.show(tokens)
