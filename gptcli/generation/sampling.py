"""Draws a token from logits. The filters are pure functions; Sampler owns the random generator.

They apply in llama.cpp's order: bias, penalties, top-k, top-p, min-p, temperature.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.settings import SamplingConfig

# Far more candidates than carry probability in practice, and a twentieth of the cost of sorting a vocabulary.
_FIRST_CANDIDATES = 1024
_HOTTEST = torch.finfo(torch.float32).max  # by infinity, what must not be drawn would be NaN


def add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Adds to the logits (vocab,) of single tokens."""
    if not bias:
        return logits
    ids = [token for token, _ in bias]
    values = torch.tensor([value for _, value in bias], device=logits.device)
    return logits.index_add(0, torch.tensor(ids, device=logits.device), values)


def penalize(logits: Tensor, recent: Tensor, repeat: float, presence: float, frequency: float) -> Tensor:
    """Makes the tokens in `recent` (n,) less likely in logits (vocab,).

    repeat divides positive logits and multiplies negative ones (Keskar et al., 2019); presence is subtracted once,
    frequency once an occurrence (OpenAI's definition).
    """
    tokens, counts = torch.unique(recent, return_counts=True)
    chosen = logits[tokens]
    chosen = torch.where(chosen > 0, chosen / repeat, chosen * repeat)
    return logits.index_copy(0, tokens, chosen - presence - frequency * counts)


def keep_top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of logits (vocab,) in descending order, and their ids; all of them where k is 0 or too large."""
    return logits.topk(min(k or len(logits), len(logits)))


def keep_top_p(ordered: Tensor, p: float, total: Tensor) -> Tensor:
    """The fewest first of descending logits (n,) whose probabilities sum to at least p (Holtzman et al., 2020).

    total: the logsumexp of the whole distribution, of which `ordered` may be only the beginning.
    """
    if p == 1:
        return ordered  # fp32 sums reach 1 long before the last token
    before = (ordered - total).exp().cumsum(0).roll(1)
    before[0] = -1  # the first stays, also where p is nothing in fp32
    return ordered[before < p]


def keep_min_p(ordered: Tensor, p: float) -> Tensor:
    """Those of descending logits (n,) at least p times as probable as the first (Nguyen et al., 2024)."""
    return ordered if p == 0 else ordered[ordered >= ordered[0] + math.log(p)]


class Sampler:
    """Draws one sequence's tokens. The seed, where none is configured, is random; `seed` tells it."""

    def __init__(self, config: SamplingConfig, device: torch.device) -> None:
        self.config = config
        self.seed = secrets.randbits(53) if config.seed is None else config.seed  # 53 bits survive any JSON reader
        self._generator = torch.Generator(device).manual_seed(self.seed)

    def __call__(self, logits: Tensor, history: Sequence[int]) -> Tensor:
        """A token, (1,), from logits (vocab,) in fp32, given the ids before it."""
        config = self.config
        logits = add_bias(logits, config.logit_bias)
        if config.penalizes:
            recent = self._recent(history, logits.device)
            logits = penalize(logits, recent, config.repeat_penalty, config.presence_penalty, config.frequency_penalty)
        if config.greedy:
            return logits.argmax(0, keepdim=True)
        ordered, ids, total = self._candidates(logits)
        ordered = keep_min_p(keep_top_p(ordered, config.top_p, total), config.min_p)
        # Subtracting the greatest first keeps a tiny temperature from overflowing.
        probabilities = ((ordered - ordered[0]) / min(config.temperature, _HOTTEST)).softmax(0)
        return ids[torch.multinomial(probabilities, 1, generator=self._generator)]

    def _recent(self, history: Sequence[int], device: torch.device) -> Tensor:
        last_n = self.config.repeat_last_n
        start = 0 if last_n < 0 else max(0, len(history) - last_n)
        return torch.tensor(history[start:], dtype=torch.int64, device=device)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits in descending order, their ids, and the logsumexp of the distribution that top-p sees.

        They are top-k's, or as many as top-p and min-p can keep: sorting a whole vocabulary costs more than a token.
        """
        config = self.config
        if config.top_k:
            ordered, ids = keep_top_k(logits, config.top_k)
            return ordered, ids, ordered.logsumexp(0)
        total = logits.logsumexp(0)
        ordered, ids = keep_top_k(logits, 0 if config.top_p == 1 and config.min_p == 0 else _FIRST_CANDIDATES)
        share = (ordered - total).exp()
        if share.sum() < config.top_p and share[-1] >= config.min_p * share[0]:
            ordered, ids = keep_top_k(logits, 0)
        return ordered, ids, total
