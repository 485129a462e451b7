"""The output of `gptcli score`: tab-separated lines in a pipe, shaded text on a terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from gptcli.cli.probabilities.shaded_tokens import ShadedToken
from gptcli.cli.probabilities.terminal_shades import ShadedText
from gptcli.cli.terminal.columns import packed, terminal_columns
from gptcli.cli.terminal.stdout import StdoutSink, clean
from gptcli.cli.terminal.token_flow import spell, visible
from gptcli.generation.score_result import ChoiceScore, Score

_BAR = 20  # columns


def sortable(value: float) -> str:
    """A number that `sort -n` understands: no exponent; NaN is `nan`."""
    return f"{value:.4f}"


def score_line(score: Score, source: str) -> bytes:
    """A text in a pipe: perplexity, bits a byte, nats, tokens, source."""
    values = (sortable(score.perplexity), sortable(score.bits_per_byte), sortable(score.nll), str(len(score.ids)))
    return "\t".join(values).encode() + b"\t" + os.fsencode(source).replace(b"\n", b" ") + b"\n"


def token_lines(tokens: Sequence[ShadedToken]) -> bytes:
    """A line for each token, in a pipe: log-probability, id, spelling, then spelling and log-probability of others."""
    lines = []
    for token in tokens:
        values = [sortable(math.nan if token.logprob is None else token.logprob), str(token.id), spell(token.data)]
        for other in token.top:
            values += [spell(other.data), sortable(other.logprob)]
        lines.append("\t".join(values) + "\n")
    return "".join(lines).encode()


def choice_lines(choices: Sequence[ChoiceScore], for_terminal: bool) -> bytes:
    """A line a choice, the likeliest first: its probability and text; on a terminal with a bar."""
    if not for_terminal:
        return "".join(f"{sortable(choice.probability)}\t{choice.text}\n" for choice in choices).encode()
    bars = ["█" * round(_BAR * choice.probability) for choice in choices]
    rows = zip(choices, bars, strict=True)
    return "".join(f"{row.probability:.4f}  {bar:<{_BAR}}  {visible(row.text)}\n" for row, bar in rows).encode()


def score_figures(score: Score) -> Sequence[tuple[str, str]]:
    """Names and values of a score's figures, for a person."""
    return (
        ("perplexity", f"{score.perplexity:.2f}"),
        ("bits a byte", f"{score.bits_per_byte:.3f}"),
        ("log-probability", f"{-score.nll:.2f}"),
        ("tokens", f"{len(score.ids):,}"),
    )


class ScoreDisplay:
    """Shows scored texts on the terminal, with a legend after the first."""

    def __init__(self, sink: StdoutSink, *, several: bool) -> None:
        self._sink = sink
        self._several = several
        self._explained = False

    def show(self, source: str, tokens: Sequence[ShadedToken], score: Score, *, with_alternatives: bool) -> None:
        """Shows a text, its figures, and each token's alternatives if asked for."""
        if self._several:
            self._sink.draw(f"{clean(source)}\n")
        shaded = ShadedText(self._sink)
        shaded.show(tokens)
        shaded.end()
        for line in packed([f"{name} {value}" for name, value in score_figures(score)], " · ", terminal_columns()):
            self._sink.draw(" · ".join(line) + "\n")
        if not self._explained:
            self._explained = True
            shaded.explain_shades()
        if with_alternatives:
            shaded.list_alternatives()
