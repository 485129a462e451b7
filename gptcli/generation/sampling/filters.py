"""Draws a token from logits. The filters are pure functions; Sampler owns the random generator.

They apply in llama.cpp's order: bias, penalties, top-k, top-p, min-p, temperature. What one of them did to a draw is
told from the very tensors that were drawn from. kernels/sample.c does the same in compiled code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from gptcli.generation.events import Explanation, FilterEffect
from gptcli.settings import HOTTEST, SamplingConfig, random_seed

# Far more candidates than carry probability in practice, and a twentieth of the cost of sorting a vocabulary.
_FIRST_CANDIDATES = 1024


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


@dataclass(frozen=True)
class Stage:
    """What a filter leaves: logits (n,) and the tokens they are of (n,), or None where they are the vocabulary's."""

    name: str
    logits: Tensor
    ids: Tensor | None = None


def stages(logits: Tensor, recent: Tensor | None, config: SamplingConfig, *, whole: bool = False) -> Iterator[Stage]:
    """What each filter that is on makes of logits (vocab,); the last stage, always there, is what is drawn from.

    recent: the tokens that penalties are for, if there are penalties. whole: whether every stage holds all that its
    filter leaves, and not only as many as the next ones can keep.
    """
    if config.logit_bias:
        logits = add_bias(logits, config.logit_bias)
        yield Stage("logit_bias", logits)
    if recent is not None:
        logits = penalize(logits, recent, config.repeat_penalty, config.presence_penalty, config.frequency_penalty)
        yield Stage("penalties", logits)
    if config.greedy:
        best = logits.argmax(0, keepdim=True)
        yield Stage("greedy", logits[best], best)
        return
    if not config.top_k and config.top_p == 1 and config.min_p == 0:
        yield Stage("temperature", _at_temperature(logits, logits.max(), config))
        return
    ordered, ids, total = _candidates(logits, config, whole)
    if config.top_k:
        yield Stage("top_k", ordered, ids)
    ordered = keep_top_p(ordered, config.top_p, total)
    if config.top_p < 1:
        yield Stage("top_p", ordered, ids[: len(ordered)])
    ordered = keep_min_p(ordered, config.min_p)
    if config.min_p > 0:
        yield Stage("min_p", ordered, ids[: len(ordered)])
    yield Stage("temperature", _at_temperature(ordered, ordered[0], config), ids[: len(ordered)])


def _at_temperature(logits: Tensor, greatest: Tensor, config: SamplingConfig) -> Tensor:
    # Subtracting the greatest first keeps a tiny temperature from overflowing.
    return (logits - greatest) / min(config.temperature, HOTTEST)


def _candidates(logits: Tensor, config: SamplingConfig, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in descending order, their ids, and the logsumexp of the distribution that top-p sees.

    They are top-k's, or as many as top-p and min-p can keep: sorting a whole vocabulary costs more than a token.
    """
    if config.top_k:
        ordered, ids = keep_top_k(logits, config.top_k)
        return ordered, ids, ordered.logsumexp(0)
    total = logits.logsumexp(0)
    ordered, ids = keep_top_k(logits, 0 if whole else _FIRST_CANDIDATES)
    share = (ordered - total).exp()
    if share.sum() < config.top_p and share[-1] >= config.min_p * share[0]:
        ordered, ids = keep_top_k(logits, 0)
    return ordered, ids, total


def explain(logits: Tensor, passed: Sequence[Stage], token: int) -> Explanation:
    """Why a token was drawn: what the `stages` that were passed did to the model's distribution, logits (vocab,)."""
    probabilities = logits.softmax(0)
    count, mass = int((logits > -math.inf).sum()), 1.0
    effects = []
    for stage in passed:
        left = stage.logits > -math.inf
        of_token = stage.logits.softmax(0)[token if stage.ids is None else stage.ids == token]
        now = int(left.sum()), float((probabilities if stage.ids is None else probabilities[stage.ids])[left].sum())
        effects.append(FilterEffect(stage.name, now[0], count - now[0], max(0.0, mass - now[1]), float(of_token)))
        count, mass = now
    return Explanation(
        entropy=float(torch.special.entr(probabilities).sum()),
        rank=int((logits > logits[token]).sum()) + 1,
        filters=tuple(effects),
    )


class Sampler:
    """Draws one sequence's tokens. The seed, where none is configured, is random; `seed` tells it."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self.seed = random_seed() if config.seed is None else config.seed
        self._random = Random(self.seed)

    def __call__(self, logits: Tensor, history: Sequence[int]) -> Tensor:
        """A token, (1,), from logits (vocab,) in fp32, given the ids before it."""
        return self.draw(self.stages(logits, history)[-1])

    def stages(self, logits: Tensor, history: Sequence[int], *, whole: bool = False) -> list[Stage]:
        """What the filters make of logits (vocab,) in fp32, given the ids before; `draw` wants the last of them."""
        recent = None
        if self.config.penalizes:
            recent = torch.tensor(self.config.recent(history), dtype=torch.int64, device=logits.device)
        return list(stages(logits, recent, self.config, whole=whole))

    def draw(self, last: Stage) -> Tensor:
        """A token, (1,), from what all filters have left: where a random share of all probability is reached."""
        if self.config.greedy:
            place = torch.zeros(1, dtype=torch.int64, device=last.logits.device)
        else:
            sums = last.logits.exp().cumsum(0, dtype=torch.float64)
            place = torch.searchsorted(sums, sums[-1:] * self._random.random(), right=True).clamp(max=len(sums) - 1)
        return place if last.ids is None else last.ids[place]
