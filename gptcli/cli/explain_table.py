"""The table on stderr that says why each token was drawn: its rank, the entropy, what the sampling filters left."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gptcli.cli.render import print_line
from gptcli.cli.shaded_terminal import fitted
from gptcli.cli.tokens_view import spell
from gptcli.generation.events import FilterEffect, StepLogprobs

_TOKEN = 12  # columns; a line fits 80 of them with the default filters
_CELL = 12
_NO_REMOVAL = ("logit_bias", "penalties", "temperature")  # filters that only make tokens more or less probable


class ExplainTable:
    """Prints a row a token as they come, or all of them at the end where the text goes to the same terminal."""

    def __init__(self, *, at_end: bool) -> None:
        self._at_end = at_end
        self._headed = False
        self._waiting: list[StepLogprobs] = []

    def add(self, steps: Iterable[StepLogprobs]) -> None:
        """Adds tokens that were drawn, each with its explanation."""
        self._waiting += steps
        if not self._at_end:
            self.close()

    def close(self) -> None:
        """Prints what has not been printed."""
        for step in self._waiting:
            assert step.explanation is not None
            if not self._headed:
                self._headed = True
                names = "".join(f"{effect.name.replace('_', '-'):>{_CELL}}" for effect in step.explanation.filters)
                print_line(f"{'token':<{_TOKEN}} {'p':>5} {'rank':>4} {'entropy':>7}{names}")
            chance, cells = math.exp(step.chosen.logprob), "".join(map(_cell, step.explanation.filters))
            rank, entropy = step.explanation.rank, step.explanation.entropy
            print_line(f"{fitted(spell(step.chosen.data), _TOKEN)} {chance:5.3f} {rank:4} {entropy:7.3f}{cells}")
        self._waiting = []


def _cell(effect: FilterEffect) -> str:
    """How many tokens a filter left and how much of the probability it took, or the token's probability behind it."""
    if effect.name in _NO_REMOVAL and not effect.removed:
        return f"{f'p {effect.probability:.3f}':>{_CELL}}"
    return f"{f'{effect.kept} -{effect.removed_probability:.1%}' if effect.removed else effect.kept:>{_CELL}}"
