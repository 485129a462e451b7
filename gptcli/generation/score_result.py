"""The scores of texts, and the figures computed from them. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptcli.generation.events import TokenLogprob


@dataclass(frozen=True)
class Score:
    """How probable a text is.

    logprobs: one per id, in nats, over the tokenizer's tokens; None for the first token, or for those that the
    tokenizer put before the text. top: the likeliest tokens at each position, best first, as many as were asked for.
    bytes: of the whole text.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    bytes: int
    top: tuple[tuple[TokenLogprob, ...], ...]

    @property
    def scored(self) -> int:
        """The number of tokens with a log-probability."""
        return sum(logprob is not None for logprob in self.logprobs)

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the scored tokens, in nats."""
        return 0.0 - math.fsum(logprob for logprob in self.logprobs if logprob is not None)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood per scored token; NaN if none is scored."""
        if not self.scored:
            return math.nan
        try:
            return math.exp(self.nll / self.scored)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits that the scored tokens take, per byte of the whole text; NaN if none is scored."""
        return self.nll / math.log(2) / self.bytes if self.scored else math.nan


@dataclass(frozen=True)
class ChoiceScore:
    """One of several continuations of a prompt.

    logprobs: one per id, in nats. probability: among the choices, whose probabilities sum to 1.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    probability: float

    @property
    def logprob(self) -> float:
        """Log-probability of the whole continuation, in nats."""
        return math.fsum(self.logprobs)
