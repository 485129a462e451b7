"""What `generate` shows of a text's tokens, as they are drawn: shades on the terminal, pictures, explanations."""

from __future__ import annotations

from gptcli.cli.explain_table import ExplainTable
from gptcli.cli.pictures import Pictures
from gptcli.cli.shaded_terminal import ShadedText
from gptcli.cli.shading import Shaded, ShownTokens
from gptcli.cli.sink import Sink
from gptcli.generation.events import TextDelta
from gptcli.text.tokenizer import Tokenizer


class TokenViews:
    """Follows one sample. It writes the text itself where that is shaded."""

    def __init__(
        self, tokenizer: Tokenizer, sink: Sink, *, shaded: bool, alternatives: bool, explain: bool, quiet: bool
    ) -> None:
        self._sink = sink
        self._tokens: list[Shaded] = []
        self._shown = ShownTokens(tokenizer)
        self._shaded = ShadedText(sink) if shaded else None
        self._alternatives = alternatives
        self._table = ExplainTable(at_end=sink.is_terminal) if explain and not quiet else None
        self._quiet = quiet

    def take(self, delta: TextDelta) -> None:
        """Takes the next piece of text; writes it."""
        self._show(self._shown.take(delta))
        if self._shaded is None:
            self._sink.write(delta.data)
        if self._table:
            self._table.add(delta.steps)

    def end(self) -> None:
        """Ends the text on a terminal; then come the tokens' alternatives and explanations."""
        self._show(self._shown.end())
        if self._shaded:
            self._shaded.close(with_alternatives=self._alternatives)
            if not self._quiet:
                self._sink.draw(self._shaded.legend())
        elif self._sink.is_terminal:
            self._sink.end_line()
        if self._table:
            self._table.close()

    def _show(self, tokens: list[Shaded]) -> None:
        self._tokens += tokens
        if self._shaded:
            self._shaded.show(tokens)
