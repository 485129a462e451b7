"""The filters that a model's logits pass before a token is drawn: pure functions.

A constraint's mask is first, then bans. The rest is in llama.cpp's order: bias, penalties, top-k, typical-p, top-p,
min-p, temperature. `kernels/c/sample.c` has the same in C, but for typical-p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.settings import MAX_TEMPERATURE, SamplingConfig

# More candidates than carry probability in practice, at a twentieth of the cost of sorting a vocabulary.
_FIRST_CANDIDATES = 1024
# Filters that keep the first tokens only, so that the vocabulary need not be sorted. Others get all of it.
_FROM_THE_TOP = frozenset({"top_p", "min_p"})


def keep_allowed(logits: Tensor, allowed: Tensor) -> Tensor:
    """Keeps the tokens of logits (vocab,) that are true in `allowed` (vocab,); the others become -inf."""
    return logits.masked_fill(~allowed, -math.inf)


def ban(logits: Tensor, banned: Sequence[int]) -> Tensor:
    """Sets the logits (vocab,) of banned tokens to -inf."""
    return logits.index_fill(0, torch.tensor(banned, device=logits.device), -math.inf)


def add_bias(logits: Tensor, bias: Sequence[tuple[int, float]]) -> Tensor:
    """Adds to the logits (vocab,) of single tokens."""
    ids = [token for token, _ in bias]
    values = torch.tensor([value for _, value in bias], dtype=logits.dtype, device=logits.device)
    return logits.index_add(0, torch.tensor(ids, device=logits.device), values)


def penalize(logits: Tensor, recent: Tensor, repeat: float, presence: float, frequency: float) -> Tensor:
    """Makes the tokens in `recent` (n,) less likely in logits (vocab,).

    repeat divides positive logits and multiplies negative ones (Keskar et al., 2019). presence is subtracted once,
    frequency once per occurrence (OpenAI's definition).
    """
    tokens, counts = torch.unique(recent, return_counts=True)
    chosen = logits[tokens]
    chosen = torch.where(chosen > 0, chosen / repeat, chosen * repeat)
    return logits.index_copy(0, tokens, chosen - presence - frequency * counts)


def keep_top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of logits (vocab,), descending, and their ids; all of them if k is 0 or too large."""
    return logits.topk(min(k or len(logits), len(logits)))


def keep_typical_p(ordered: Tensor, p: float) -> Tensor:
    """Keeps tokens whose information is nearest to the entropy, until they sum to at least p (Meister et al., 2023).

    ordered: logits (n,). Returns which to keep, (n,) bool.
    """
    information = -ordered.log_softmax(0)
    entropy = (information * (-information).exp()).nansum()
    distances = (information - entropy).abs()
    nearest, order = distances.sort()
    before = (ordered[order].softmax(0).cumsum(0) < p).sum().clamp(max=len(ordered) - 1)
    kept: Tensor = distances <= nearest[before]
    return kept


def keep_top_p(ordered: Tensor, p: float, total: Tensor) -> Tensor:
    """Keeps the fewest tokens whose probabilities sum to at least p (Holtzman et al., 2020).

    ordered: descending logits (n,). total: logsumexp of the whole distribution, which `ordered` may only begin. Returns
    which to keep, (n,) bool.
    """
    if p == 1:
        return torch.ones_like(ordered, dtype=torch.bool)  # fp32 sums reach 1 long before the last token
    before = (ordered - total).exp().cumsum(0).roll(1)
    before[0] = -1  # the first stays, even where p is 0 in fp32
    return before < p


def keep_min_p(ordered: Tensor, p: float) -> Tensor:
    """Keeps those of descending logits (n,) at least p times as probable as the first (Nguyen et al., 2024).

    Returns which to keep, (n,) bool.
    """
    return ordered >= ordered[0] + (math.log(p) if p else -math.inf)


@dataclass(frozen=True)
class Stage:
    """The result of a filter: logits (n,) and their tokens' ids (n,); None: the vocabulary in its order."""

    name: str
    logits: Tensor
    ids: Tensor | None = None


def stages(
    logits: Tensor,
    allowed: Tensor | None,
    recent: Tensor | None,
    config: SamplingConfig,
    *,
    banned: Sequence[int] = (),
    whole: bool = False,
) -> Iterator[Stage]:
    """Yields the stage after each active filter of logits (vocab,); the token is drawn from the last one.

    allowed: a constraint's mask (vocab,), if there is one. recent: the tokens to penalize (n,), if there are any.
    banned: the config's banned ids. whole: stages have all tokens that their filter leaves, not only as many as the
    next filters can keep.
    """
    if allowed is not None:
        logits = keep_allowed(logits, allowed)
        yield Stage("constraint", logits)
    if banned:
        logits = ban(logits, banned)
        yield Stage("banned", logits)
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
    active = list(cuts(config))
    if not config.top_k and not active:
        yield Stage("temperature", _at_temperature(logits, logits.max(), config))
        return
    whole = whole or not _FROM_THE_TOP.issuperset(name for name, _ in active)
    ordered, ids, total = _candidates(logits, config, whole)
    if config.top_k:
        yield Stage("top_k", ordered, ids)
    for name, cut in active:
        kept = cut(ordered, total).nonzero()[:, 0]
        ordered, ids = ordered[kept], ids[kept]
        total = ordered.logsumexp(0)
        yield Stage(name, ordered, ids)
    yield Stage("temperature", _at_temperature(ordered, ordered[0], config), ids)


def cuts(config: SamplingConfig) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """The active filters after top-k: which of descending logits (n,) each keeps, given their logsumexp."""
    if config.typical_p < 1:
        yield "typical_p", lambda ordered, total: keep_typical_p(ordered, config.typical_p)
    if config.top_p < 1:
        yield "top_p", lambda ordered, total: keep_top_p(ordered, config.top_p, total)
    if config.min_p > 0:
        yield "min_p", lambda ordered, total: keep_min_p(ordered, config.min_p)


def _at_temperature(logits: Tensor, greatest: Tensor, config: SamplingConfig) -> Tensor:
    # Subtracts the greatest first: a tiny temperature would overflow.
    return (logits - greatest) / min(config.temperature, MAX_TEMPERATURE)


def _candidates(logits: Tensor, config: SamplingConfig, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns descending logits, their ids, and the logsumexp of the distribution that top-p sees.

    Without top-k these are as many as top-p and min-p can keep: sorting a vocabulary costs more than a draw.
    """
    if config.top_k:
        ordered, ids = keep_top_k(logits, config.top_k)
        return ordered, ids, ordered.logsumexp(0)
    total = logits.logsumexp(0)
    ordered, ids = keep_top_k(logits, 0 if whole else _FIRST_CANDIDATES)
    share = (ordered - total).exp()
    enough = share.sum() >= config.top_p < 1 or share[-1] < config.min_p * share[0]
    if not enough:
        ordered, ids = keep_top_k(logits, 0)
    return ordered, ids, total
