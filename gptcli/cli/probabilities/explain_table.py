"""The table of --explain on stderr: each token's rank, the entropy, what the sampling filters left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptcli.cli.terminal.columns import fitted
from gptcli.cli.terminal.stderr import print_line
from gptcli.cli.terminal.token_flow import spell
from gptcli.generation.events import FilterEffect, StepLogprobs

_TOKEN = 12  # columns; a row with the default filters fits 80
_CELL = 12
_KEEP_ALL = ("logit_bias", "penalties", "temperature")  # filters that only change probabilities


class ExplainTable:
    """Prints a row for each token: at once, or after the text if that goes to the same terminal."""

    def __init__(self, *, at_end: bool) -> None:
        self._at_end = at_end
        self._printed = 0  # rows

    def add(self, steps: Sequence[StepLogprobs]) -> None:
        """Takes the explained tokens of a piece of text."""
        if not self._at_end:
            self._print(steps)

    def close(self, steps: Sequence[StepLogprobs]) -> None:
        """Prints the rows that are missing. steps: all of the sample, a hidden stop text included."""
        self._print(steps[self._printed :])

    def _print(self, steps: Sequence[StepLogprobs]) -> None:
        for step in steps:
            assert step.explanation is not None
            rank, entropy, filters = step.explanation.rank, step.explanation.entropy, step.explanation.filters
            if not self._printed:
                names = "".join(f"{effect.name.replace('_', '-'):>{_CELL}}" for effect in filters)
                print_line(f"{'token':<{_TOKEN}} {'p':>5} {'rank':>4} {'entropy':>7}{names}")
            name, probability = fitted(spell(step.chosen.data), _TOKEN), math.exp(step.chosen.logprob)
            print_line(f"{name} {probability:5.3f} {rank:4} {entropy:7.3f}{''.join(map(_cell, filters))}")
            self._printed += 1


def _cell(effect: FilterEffect) -> str:
    """Tokens that a filter kept and the probability that it removed; without these the token's probability after it."""
    if effect.name in _KEEP_ALL and not effect.removed:
        return f"{f'p {effect.probability:.3f}':>{_CELL}}"
    removed = f" -{effect.removed_probability:.1%}" if effect.removed else ""
    return f"{f'{effect.kept}{removed}':>{_CELL}}"
