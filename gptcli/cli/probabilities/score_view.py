"""What `gptcli score` shows: lines between tabs in a pipe, shaded text on a terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from gptcli.cli.probabilities.shaded_text import ShadedText
from gptcli.cli.probabilities.shading import Shaded, figures
from gptcli.cli.terminal.stdout import Sink, clean
from gptcli.cli.terminal.token_flow import packed, spell, terminal_columns, visible
from gptcli.generation.score_result import ChoiceScore, Score

_BAR = 20  # columns


def figure(value: float) -> str:
    """A figure that `sort -n` understands: no exponent. One that there is not is `nan`."""
    return f"{value:.4f}"


def text_figures(score: Score, source: str) -> bytes:
    """A text's line in a pipe: perplexity, bits a byte, nats, tokens, where it is from."""
    values = (figure(score.perplexity), figure(score.bits_per_byte), figure(score.nll), str(len(score.ids)))
    return "\t".join(values).encode() + b"\t" + os.fsencode(source).replace(b"\n", b" ") + b"\n"


def token_lines(tokens: Sequence[Shaded]) -> bytes:
    """A line a token in a pipe: its log-probability, id and spelling, then spelling and log-probability of others."""
    lines = []
    for token in tokens:
        values = [figure(math.nan if token.logprob is None else token.logprob), str(token.id), spell(token.data)]
        for other in token.top:
            values += [spell(other.data), figure(other.logprob)]
        lines.append("\t".join(values) + "\n")
    return "".join(lines).encode()


def choice_lines(choices: Sequence[ChoiceScore], for_terminal: bool) -> bytes:
    """A line a choice, the likeliest first: its probability and text; on a terminal with a bar."""
    if not for_terminal:
        return "".join(f"{figure(choice.probability)}\t{choice.text}\n" for choice in choices).encode()
    lines = []
    for choice in choices:
        filled = round(_BAR * choice.probability)
        lines.append(f"{choice.probability:.4f}  {'█' * filled:<{_BAR}}  {visible(choice.text)}\n")
    return "".join(lines).encode()


class ScoreView:
    """Shows scored texts on the terminal behind a sink, and below the first one what the shades mean."""

    def __init__(self, sink: Sink, *, several: bool) -> None:
        self._sink = sink
        self._several = several
        self._explained = False

    def show(self, source: str, tokens: Sequence[Shaded], score: Score, *, with_alternatives: bool) -> None:
        """Shows a text, its figures, and each token's alternatives if they are asked for."""
        if self._several:
            self._sink.draw(f"{clean(source)}\n")
        shaded = ShadedText(self._sink)
        shaded.show(tokens)
        shaded.end()
        for line in packed([f"{name} {value}" for name, value in figures(score)], " · ", terminal_columns()):
            self._sink.draw(" · ".join(line) + "\n")
        if not self._explained:
            self._explained = True
            shaded.explain_shades()
        if with_alternatives:
            shaded.list_alternatives()
